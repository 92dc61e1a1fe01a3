// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {MinerRegistry} from "./MinerRegistry.sol";

/// A line leads from a miner's sent channel to a storage node's received channel; after it was closed, another one
/// between the same ends has the next epoch.
struct Ends {
    uint48 minerToken;
    uint64 minerChannel;
    uint48 nodeToken;
    uint64 nodeChannel;
    uint32 epoch;
}

/// How much a line may lose: by its resistance, or by a share of what was sent.
struct Loss {
    uint64 resistanceUohm;
    uint32 lossPpm;
    uint32 maxLossPpm;
}

/// A register at one instant: unix seconds, mW·s, the batch's seq, the number of the key that signed. `until` is the end
/// of the period of the claim that showed it.
struct Reading {
    uint64 time;
    uint64 register;
    uint64 seq;
    uint16 keyNumber;
    uint48 until;
}

/// Why a line is not paid: a code, and the block of the event with the text.
struct Hold {
    uint8 code;
    uint64 heldBlock;
}

/// Energy in mW·s, `minted` in wei.
struct Line {
    Ends ends;
    Loss loss;
    uint64 openedAt; // 0 while it is only approved
    uint64 closedAt; // 0 while it is open
    Reading baseSent;
    Reading baseReceived;
    Reading sent; // the newest that was claimed
    Reading received;
    uint128 carriedSent; // of earlier keys, whose registers began at 0 each
    uint128 carriedReceived;
    uint80 paid; // payable total of the newest claim
    uint80 credit; // claimed, not minted
    uint96 minted;
    uint80 forfeited; // credited, and lost by a fraud proof
}

/// A line as it is stored: what every claim reads is in five words. Times, registers and keys of the newest readings.
struct Kept {
    Ends ends;
    Loss loss;
    uint48 sentTime;
    uint64 sentRegister;
    uint64 sentSeq;
    uint16 sentKey;
    uint48 until; // of the sent reading
    uint48 receivedTime;
    uint64 receivedRegister;
    uint64 receivedSeq;
    uint16 receivedKey;
    uint48 openedAt;
    uint72 paid;
    uint64 credit;
    uint96 minted;
    bool opened;
    bool held;
    uint8 holdCode;
    uint64 baseSent;
    uint64 baseReceived;
    uint80 forfeited;
    uint48 closedAt;
    uint80 carriedSent;
    uint80 carriedReceived;
    uint64 heldBlock;
    Reading baseSentReading;
    Reading baseReceivedReading;
}

/// What a claim asks of a line, and of all lines together.
struct Claimable {
    Ends ends;
    uint64 closedAt;
    bool opened;
    bool held;
    uint8 holdCode;
    Reading sent;
    Reading received;
    uint64 baseSent;
    uint64 baseReceived;
    uint128 carriedSent;
    uint128 carriedReceived;
    uint80 paid;
    uint80 credit;
    uint80 forfeited;
    uint128 totalPaid;
}

/// What is known of every line, whatever contract pays: so that a change of that contract imports nothing, and two of
/// them cannot pay twice.
contract LineBook is AccessManaged {
    event WriterSet(address indexed writer);
    event LineApproved(bytes32 indexed line, Ends ends, Loss loss);
    event LineOpened(bytes32 indexed line, uint256 indexed minerToken, uint256 indexed nodeToken);
    event LineClosing(bytes32 indexed line, address indexed owner);
    event LineClosingTakenBack(bytes32 indexed line, address indexed owner);
    event LineClosed(bytes32 indexed line);
    event LineHeld(bytes32 indexed line, uint8 code, string text);
    event LineReleased(bytes32 indexed line);
    event MeterReplaced(bytes32 indexed line, bool indexed minerEnd, uint64 register);
    event Claimed(bytes32 indexed line, uint64 until, uint256 payableTotal, uint256 difference);
    event Paid(bytes32 indexed line, uint256 energy, uint256 amount);
    event Forfeited(bytes32 indexed line, uint256 energy);

    error NotWriter(address caller);
    error NoSuchLine(bytes32 line);
    error LineNotOpen(bytes32 line);
    error LineExists(bytes32 line);
    error ChannelInUse(uint256 token, uint64 channel, bytes32 line);
    error ReadingBeforeClosing(uint256 token, uint64 time, uint64 closedAt);
    error NothingNew(bytes32 line, uint256 payableTotal, uint256 paid);
    error NotAnOwner(bytes32 line, address caller);

    MinerRegistry public immutable registry;

    /// What pays. A successor takes its place; nothing is imported.
    address public writer;
    uint120 private _totalPaid;
    uint120 private _totalMinted;
    bool private _isThere = true; // so that nobody's first claim pays for a new word
    mapping(bytes32 line => Kept) private _lines;
    mapping(bytes32 line => mapping(bool minerEnd => mapping(uint16 keyNumber => Reading))) private _closings;
    mapping(bytes32 line => address) private _closing;
    bytes32[] private _lineIds;
    mapping(uint256 token => mapping(uint64 channel => bytes32 line)) public lineOf;
    mapping(uint256 token => mapping(uint64 channel => uint64)) public closedAt;

    modifier onlyWriter() {
        if (msg.sender != writer) revert NotWriter(msg.sender);
        _;
    }

    constructor(address authority_, MinerRegistry registry_) AccessManaged(authority_) {
        registry = registry_;
    }

    /// The DAO says which contract pays.
    function setWriter(address writer_) external restricted {
        writer = writer_;
        emit WriterSet(writer_);
    }

    function lineId(Ends memory ends) public pure returns (bytes32) {
        return keccak256(abi.encode(ends));
    }

    /// The DAO allows a line, or changes what an open one may lose. It opens with a reading of each end.
    function approveLine(Ends calldata ends, Loss calldata loss) external restricted returns (bytes32 id) {
        id = lineId(ends);
        Kept storage line = _lines[id];
        if (line.ends.minerToken == 0) _lineIds.push(id);
        line.ends = ends;
        line.loss = loss;
        emit LineApproved(id, ends, loss);
    }

    /// A line begins, with the readings that are its bases.
    function open(bytes32 id, Reading calldata sent, Reading calldata received) external onlyWriter {
        Kept storage line = _line(id);
        if (line.opened) revert LineExists(id);
        if (line.closedAt != 0) revert LineNotOpen(id);
        _take(line.ends.minerToken, line.ends.minerChannel, id, sent.time);
        _take(line.ends.nodeToken, line.ends.nodeChannel, id, received.time);
        (line.opened, line.openedAt) = (true, uint48(block.timestamp));
        (line.baseSent, line.baseReceived) = (sent.register, received.register);
        (line.baseSentReading, line.baseReceivedReading) = (sent, received);
        _keepSent(line, sent);
        _keepReceived(line, received);
        emit LineOpened(id, line.ends.minerToken, line.ends.nodeToken);
    }

    /// The DAO closes a line: both channels are free for another, and nothing measured later is paid on it. One that it
    /// only approved can be opened no more.
    function close(bytes32 id) external restricted {
        _close(id);
    }

    /// Both owners together close their line.
    function agreeToClose(bytes32 id) external {
        Kept storage line = _line(id);
        address miner = registry.ownerOf(line.ends.minerToken);
        address node = registry.ownerOf(line.ends.nodeToken);
        if (msg.sender != miner && msg.sender != node) revert NotAnOwner(id, msg.sender);
        if (!line.opened || line.closedAt != 0) revert LineNotOpen(id);
        address other = _closing[id];
        if (miner == node || (other != address(0) && other != msg.sender)) return _close(id);
        _closing[id] = msg.sender;
        emit LineClosing(id, msg.sender);
    }

    /// An owner takes its consent to a closing back, while the other has not given its own.
    function takeBackClosing(bytes32 id) external {
        if (_closing[id] != msg.sender) revert NotAnOwner(id, msg.sender);
        delete _closing[id];
        emit LineClosingTakenBack(id, msg.sender);
    }

    /// Nothing of a line is paid until it is released.
    function hold(bytes32 id, uint8 code, string calldata text) external onlyWriter {
        Kept storage line = _line(id);
        (line.held, line.holdCode, line.heldBlock) = (true, code, uint64(block.number));
        emit LineHeld(id, code, text);
    }

    /// A held line is paid again.
    function release(bytes32 id) external onlyWriter {
        Kept storage line = _lines[id];
        (line.held, line.holdCode, line.heldBlock) = (false, 0, 0);
        emit LineReleased(id);
    }

    /// One end goes on with the next key, whose registers begin at 0: what is known of the one before is carried.
    function nextKey(bytes32 id, bool minerEnd, Reading calldata opening) external onlyWriter {
        Kept storage line = _line(id);
        Reading memory known = minerEnd ? _sent(line) : _received(line);
        _closings[id][minerEnd][known.keyNumber] = known;
        if (minerEnd) {
            line.carriedSent += known.register;
            _keepSent(line, opening);
        } else {
            line.carriedReceived += known.register;
            _keepReceived(line, opening);
        }
        emit MeterReplaced(id, minerEnd, known.register);
    }

    /// A later register of an earlier key: the difference is carried, too.
    function raiseClosing(bytes32 id, bool minerEnd, Reading calldata closing) external onlyWriter {
        Kept storage line = _line(id);
        uint64 more = closing.register - _closings[id][minerEnd][closing.keyNumber].register;
        _closings[id][minerEnd][closing.keyNumber] = closing;
        if (minerEnd) line.carriedSent += more;
        else line.carriedReceived += more;
        emit MeterReplaced(id, minerEnd, closing.register);
    }

    /// Credit the difference to what was paid, only ever more, and note what of the credit was minted.
    function claim(
        bytes32 id,
        uint80 payableTotal,
        Reading calldata sent,
        Reading calldata received,
        uint80 energy,
        uint96 amount
    ) external onlyWriter returns (uint256 total) {
        Kept storage line = _line(id);
        if (!line.opened) revert LineNotOpen(id);
        uint80 paid = line.paid;
        if (payableTotal <= paid) revert NothingNew(id, payableTotal, paid);
        _keepSent(line, sent);
        _keepReceived(line, received);
        _keepPaid(line, payableTotal, line.credit + (payableTotal - paid) - energy, line.minted + amount);
        total = _count(payableTotal - paid, amount);
        emit Claimed(id, sent.until, payableTotal, payableTotal - paid);
        if (energy != 0) emit Paid(id, energy, amount);
    }

    /// Tokens were minted for a part of the credit.
    function pay(bytes32 id, uint80 energy, uint96 amount) external onlyWriter {
        Kept storage line = _line(id);
        line.credit = SafeCast.toUint64(line.credit - energy);
        line.minted += amount;
        _totalMinted += amount;
        emit Paid(id, energy, amount);
    }

    /// What was credited and not minted is lost, by a decision of the DAO.
    function forfeit(bytes32 id) external onlyWriter {
        Kept storage line = _line(id);
        if (line.credit == 0) return;
        emit Forfeited(id, line.credit);
        (line.credit, line.forfeited) = (0, line.forfeited + line.credit);
    }

    /// Of all lines, mW·s: no order pays beyond its own total.
    function totalPaid() external view returns (uint128) {
        return _totalPaid;
    }

    /// Of all lines, wei of energy tokens: what Rewards mints on.
    function totalMinted() external view returns (uint128) {
        return _totalMinted;
    }

    function lineAt(bytes32 id) external view returns (Line memory line) {
        Kept storage kept = _line(id);
        (line.ends, line.loss, line.openedAt, line.closedAt) = (kept.ends, kept.loss, kept.openedAt, kept.closedAt);
        (line.baseSent, line.baseReceived) = (kept.baseSentReading, kept.baseReceivedReading);
        (line.sent, line.received) = (_sent(kept), _received(kept));
        (line.carriedSent, line.carriedReceived) = (kept.carriedSent, kept.carriedReceived);
        (line.paid, line.credit, line.minted) = (kept.paid, kept.credit, kept.minted);
        line.forfeited = kept.forfeited;
    }

    /// The part of a line that a claim goes by.
    function claimable(bytes32 id) external view returns (Claimable memory line) {
        Kept storage kept = _line(id);
        (line.ends, line.closedAt, line.opened) = (kept.ends, kept.closedAt, kept.opened);
        (line.held, line.holdCode) = (kept.held, kept.holdCode);
        (line.sent, line.received) = (_sent(kept), _received(kept));
        (line.baseSent, line.baseReceived) = (kept.baseSent, kept.baseReceived);
        if (kept.sentKey != 0 || kept.receivedKey != 0) {
            // before key 0 there is none
            (line.carriedSent, line.carriedReceived) = (kept.carriedSent, kept.carriedReceived);
        }
        (line.paid, line.credit, line.forfeited) = (kept.paid, kept.credit, kept.forfeited);
        line.totalPaid = _totalPaid;
    }

    function lineIds() external view returns (bytes32[] memory) {
        return _lineIds;
    }

    /// The last register of an earlier key of a line's end.
    function closingOf(bytes32 id, bool minerEnd, uint16 keyNumber) external view returns (Reading memory) {
        return _closings[id][minerEnd][keyNumber];
    }

    function holdOf(bytes32 id) external view returns (Hold memory) {
        return Hold(_lines[id].holdCode, _lines[id].heldBlock);
    }

    function _sent(Kept storage line) private view returns (Reading memory) {
        return Reading(line.sentTime, line.sentRegister, line.sentSeq, line.sentKey, line.until);
    }

    function _received(Kept storage line) private view returns (Reading memory) {
        return Reading(line.receivedTime, line.receivedRegister, line.receivedSeq, line.receivedKey, 0);
    }

    // what is kept together is computed first, and assigned at once: the word is then written once

    function _keepPaid(Kept storage line, uint80 paid, uint80 credit, uint96 minted) private {
        (uint72 paidNow, uint64 creditNow) = (SafeCast.toUint72(paid), SafeCast.toUint64(credit));
        (line.paid, line.credit, line.minted) = (paidNow, creditNow, minted);
    }

    function _count(uint80 paid, uint96 minted) private returns (uint256) {
        (uint120 allPaid, uint120 allMinted) = (_totalPaid + paid, _totalMinted + minted);
        (_totalPaid, _totalMinted) = (allPaid, allMinted);
        return allPaid;
    }

    function _keepSent(Kept storage line, Reading calldata reading) private {
        (uint48 time, uint64 register, uint64 seq) = (
            SafeCast.toUint48(reading.time),
            reading.register,
            reading.seq
        );
        (uint16 keyNumber, uint48 until) = (reading.keyNumber, reading.until);
        (line.sentTime, line.sentRegister, line.sentSeq) = (time, register, seq);
        (line.sentKey, line.until) = (keyNumber, until);
    }

    function _keepReceived(Kept storage line, Reading calldata reading) private {
        (uint48 time, uint64 register, uint64 seq) = (
            SafeCast.toUint48(reading.time),
            reading.register,
            reading.seq
        );
        uint16 keyNumber = reading.keyNumber;
        (line.receivedTime, line.receivedRegister, line.receivedSeq) = (time, register, seq);
        line.receivedKey = keyNumber;
    }

    function _take(uint256 token, uint64 channel, bytes32 id, uint64 time) private {
        if (lineOf[token][channel] != 0) revert ChannelInUse(token, channel, lineOf[token][channel]);
        if (time < closedAt[token][channel]) revert ReadingBeforeClosing(token, time, closedAt[token][channel]);
        lineOf[token][channel] = id;
    }

    function _close(bytes32 id) private {
        Kept storage line = _line(id);
        if (line.closedAt != 0) revert LineNotOpen(id);
        line.closedAt = uint48(block.timestamp);
        emit LineClosed(id);
        if (!line.opened) return;
        Ends memory ends = line.ends;
        delete lineOf[ends.minerToken][ends.minerChannel];
        delete lineOf[ends.nodeToken][ends.nodeChannel];
        closedAt[ends.minerToken][ends.minerChannel] = uint64(block.timestamp);
        closedAt[ends.nodeToken][ends.nodeChannel] = uint64(block.timestamp);
    }

    function _line(bytes32 id) private view returns (Kept storage line) {
        line = _lines[id];
        if (line.ends.minerToken == 0) revert NoSuchLine(id);
    }
}
