// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Attestation, DeviceKey, DeviceKeys} from "./DeviceKeys.sol";
import {EnergyToken} from "./EnergyToken.sol";
import {Claimable, Ends, Line, LineBook, Reading} from "./LineBook.sol";
import {End, KeyAt, MinerRegistry, Store} from "./MinerRegistry.sol";
import {Kind, Status} from "./Systems.sol";

enum OrderStatus {
    None,
    Posted,
    Approved,
    Rejected,
    Withdrawn
}

/// All lines of a period in one order. Energy in mW·s, times in unix seconds.
struct Posting {
    uint64 until;
    bytes32 root; // over the lines' leaves
    uint32 count; // of leaves
    uint128 total; // payable totals of all lines together, since they opened
    bytes32 manifestDigest; // SHA-256 of the evidence's manifest
    string evidence; // where it is
}

struct Order {
    bytes32 content; // hash of the number and the posting
    uint64 postedAt;
    uint64 postedBlock;
    uint64 decidedBlock;
    OrderStatus status;
    uint8 code;
}

/// The order whose leaves can be claimed, and what a claim goes by, in one word.
struct Terms {
    uint48 orderId;
    uint96 total;
    uint48 until;
    uint24 nodeSharePpm;
    uint40 capacityPpm;
}

/// A line's part of an order, and the attestations of its two cuts.
struct Claim {
    bytes32 line;
    uint256 payableTotal;
    bytes32 manifest;
    bytes32[] proof;
    Attestation sent;
    Attestation received;
}

/// Why the DAO leaves a line out.
struct Exclusion {
    bytes32 line;
    uint8 code;
    string text;
}

/// Orders of a period, and the payment of their lines.
///
/// An order states for every line the total payable since it opened, so whatever was lost, repeated or refused, only
/// the difference to what was paid is ever paid. Only the newest approved order can be claimed.
contract EnergySettlement is AccessManaged {
    using DeviceKeys for DeviceKey;

    uint8 private constant ROLE_SENT = 1;
    uint8 private constant ROLE_RECEIVED = 2;
    uint256 private constant PPM = 1_000_000;
    /// 1 mW·s at 10⁶ ppm is 2500·10⁶/9 wei of a token of 3.6·10⁹ mW·s.
    uint256 private constant WEI_NUMERATOR = 2_500;
    uint256 private constant WEI_DENOMINATOR = 9;
    uint256 private constant WEI_PER_WH = 1e15;
    uint64 private constant LONGEST_LIFE = 366 days;
    uint256 private constant MAX_EVIDENCE_BYTES = 512;
    uint256 private constant MAX_TEXT_BYTES = 1_024;

    event OrderPosted(uint256 indexed orderId, uint64 indexed until, Posting posting);
    event OrderApproved(uint256 indexed orderId, uint64 indexed until);
    event OrderRejected(uint256 indexed orderId, uint8 code, string text);
    event OrderWithdrawn(uint256 indexed orderId);
    event NoRoomYet(bytes32 indexed line, uint256 credit);
    event FraudProved(uint256 indexed token, uint64 indexed channel, uint64 seq, address indexed by);
    event ParametersChanged(uint256 nodeSharePpm, uint256 capacityPpm, uint64 orderLife);

    error WrongEnd(uint256 token, uint64 channel);
    error SystemNotActive(uint256 token);
    error BadAttestation(uint256 token, uint64 channel);
    error AttestationInFuture(uint64 time, uint256 blockTime);
    error RegisterWentBack(uint256 token, uint64 register, uint64 known);
    error ReadingWentBack(uint256 token, uint64 time, uint64 seq);
    error RegisterTooFast(uint256 token, uint256 growth, uint256 capacity);
    error OtherKey(uint256 token, uint64 keyNumber, uint64 known);
    error ReadingAfterClosing(uint64 time, uint64 closedAt);
    error OrderOpen(uint256 orderId);
    error NoSuchOrder(uint256 orderId);
    error OrderNotOpen(uint256 orderId, OrderStatus status);
    error OrderLapsed(uint256 orderId);
    error ContentChanged(uint256 orderId, bytes32 voted, bytes32 stored);
    error NothingPosted();
    error PeriodNotOver(uint64 until);
    error PeriodNotNew(uint64 until, uint64 approved);
    error TextTooLong(uint256 bytes_);
    error NothingPayable(uint256 total, uint256 paid);
    error NoOrderApproved();
    error LineWasNotOpened(bytes32 line);
    error NotInOrder(bytes32 line, uint256 orderId);
    error LineIsHeld(bytes32 line, uint8 code);
    error PayableExceedsGrowth(uint256 payableTotal, uint256 sentGrowth, uint256 receivedGrowth);
    error OrderExceeded(uint256 orderId, uint256 total);
    error NothingToCollect(bytes32 line);
    error NoRoom(uint256 nodeToken, uint256 supply, uint256 capacity);
    error NoFraud(uint256 token);
    error ProvedBefore(uint256 token, uint64 channel, uint64 seq);
    error OutOfRange(uint256 value);

    MinerRegistry public immutable registry;
    LineBook public immutable book;
    bytes32 private immutable _networkDigest;

    uint64 public orderLife = 60 days;
    uint256 public orders;
    bytes32 private _root;
    Terms private _terms = Terms(0, 0, 0, 100_000, 1_250_000);
    mapping(uint256 orderId => Order) private _orders;
    mapping(bytes32 place => bool) private _fraudProved;

    constructor(address authority_, MinerRegistry registry_, LineBook book_) AccessManaged(authority_) {
        registry = registry_;
        book = book_;
        _networkDigest = registry_.networkDigest();
    }

    function contentOf(uint256 orderId, Posting calldata posting) public pure returns (bytes32) {
        return keccak256(abi.encode(orderId, posting));
    }

    /// The operator asks for the payment of a period. The order before must be decided, withdrawn or lapsed.
    function post(Posting calldata posting) external restricted returns (uint256 orderId) {
        if (isOpen(orders)) revert OrderOpen(orders);
        if (posting.root == 0 || posting.count == 0) revert NothingPosted();
        if (posting.until > block.timestamp) revert PeriodNotOver(posting.until);
        if (posting.until <= _terms.until) revert PeriodNotNew(posting.until, _terms.until);
        if (posting.total > type(uint96).max) revert OutOfRange(posting.total);
        if (posting.total <= book.totalPaid()) revert NothingPayable(posting.total, book.totalPaid());
        if (bytes(posting.evidence).length > MAX_EVIDENCE_BYTES) revert TextTooLong(bytes(posting.evidence).length);
        orderId = ++orders;
        Order storage order = _orders[orderId];
        order.content = contentOf(orderId, posting);
        (order.postedAt, order.postedBlock) = (uint64(block.timestamp), uint64(block.number));
        order.status = OrderStatus.Posted;
        emit OrderPosted(orderId, posting.until, posting);
    }

    /// The operator takes an undecided order back.
    function withdraw(uint256 orderId) external restricted {
        _decide(orderId, OrderStatus.Withdrawn, 0);
        emit OrderWithdrawn(orderId);
    }

    /// The DAO approves the order as it was voted on, but for the lines that it leaves out: these stay held until it
    /// releases them.
    function approve(
        uint256 orderId,
        Posting calldata posting,
        Exclusion[] calldata excluded
    ) external restricted {
        bytes32 content = contentOf(orderId, posting);
        if (content != _order(orderId).content) revert ContentChanged(orderId, content, _order(orderId).content);
        if (_lapsed(orderId)) revert OrderLapsed(orderId);
        if (posting.until <= _terms.until) revert PeriodNotNew(posting.until, _terms.until);
        _decide(orderId, OrderStatus.Approved, 0);
        _root = posting.root;
        (uint48 number, uint96 total) = (SafeCast.toUint48(orderId), SafeCast.toUint96(posting.total));
        (_terms.orderId, _terms.total, _terms.until) = (number, total, SafeCast.toUint48(posting.until));
        for (uint256 k = 0; k < excluded.length; ++k) _hold(excluded[k]);
        emit OrderApproved(orderId, posting.until);
    }

    /// The DAO rejects an order: codes 60 data_integrity, 61 mining_history, 62 hardware_integrity, 63 loss, 64 other.
    function reject(uint256 orderId, bytes32 content, uint8 code, string calldata text) external restricted {
        if (content != _order(orderId).content) revert ContentChanged(orderId, content, _order(orderId).content);
        if (bytes(text).length > MAX_TEXT_BYTES) revert TextTooLong(bytes(text).length);
        _decide(orderId, OrderStatus.Rejected, code);
        emit OrderRejected(orderId, code, text);
    }

    /// The DAO stops the payment of a line, whatever order it is in.
    function hold(Exclusion calldata exclusion) external restricted {
        _hold(exclusion);
    }

    /// The DAO lets a held line be paid again.
    function release(bytes32 line) external restricted {
        book.release(line);
    }

    /// Open a line that the DAO approved, with an attestation of each end: its bases. Anyone may.
    function openLine(bytes32 id, Attestation calldata sent, Attestation calldata received) external restricted {
        Ends memory ends = book.lineAt(id).ends;
        (Reading memory first, ) = _read(ends.minerToken, ends.minerChannel, ROLE_SENT, sent);
        (Reading memory second, ) = _read(ends.nodeToken, ends.nodeChannel, ROLE_RECEIVED, received);
        book.open(id, first, second);
    }

    /// One end of a line has another key or device: it goes on with the next one, whose registers begin at 0 (P-BAT-3).
    /// Anyone may; what the old key measured beyond what is known is shown by `showClosing`.
    function nextKey(bytes32 id, bool minerEnd) external restricted {
        Line memory line = book.lineAt(id);
        if (line.openedAt == 0) revert LineWasNotOpened(id);
        Reading memory opening;
        opening.keyNumber = (minerEnd ? line.sent : line.received).keyNumber + 1;
        uint256 token = minerEnd ? line.ends.minerToken : line.ends.nodeToken;
        opening.time = registry.keyAt(token, opening.keyNumber).from;
        if (line.closedAt != 0 && opening.time > line.closedAt) revert ReadingAfterClosing(opening.time, line.closedAt);
        book.nextKey(id, minerEnd, opening);
    }

    /// A register of an earlier key, later than the one that was carried: the difference is carried, too. Anyone may.
    function showClosing(bytes32 id, bool minerEnd, Attestation calldata closing) external restricted {
        Line memory line = book.lineAt(id);
        _requireBefore(line.closedAt, closing.time);
        (Reading memory last, End memory end) = minerEnd
            ? _read(line.ends.minerToken, line.ends.minerChannel, ROLE_SENT, closing)
            : _read(line.ends.nodeToken, line.ends.nodeChannel, ROLE_RECEIVED, closing);
        uint256 token = minerEnd ? line.ends.minerToken : line.ends.nodeToken;
        uint16 present = (minerEnd ? line.sent : line.received).keyNumber;
        if (last.keyNumber >= present) revert OtherKey(token, last.keyNumber, present);
        _follows(token, last, book.closingOf(id, minerEnd, last.keyNumber), uint256(end.peakMw) * _terms.capacityPpm);
        book.raiseClosing(id, minerEnd, last);
    }

    /// Claim a line's part of the approved order and pay it out, as far as its node's battery has room. Anyone may.
    function claim(Claim calldata wanted) external restricted {
        Claimable memory line = book.claimable(wanted.line);
        if (!line.opened) revert LineWasNotOpened(wanted.line);
        if (line.held) revert LineIsHeld(wanted.line, line.holdCode);
        Terms memory terms = _terms;
        if (terms.orderId == 0) revert NoOrderApproved();
        if (!_isIn(terms.until, wanted)) revert NotInOrder(wanted.line, terms.orderId);
        _requireBefore(line.closedAt, wanted.sent.time);
        _requireBefore(line.closedAt, wanted.received.time);
        (End memory miner, End memory node, Store memory store) = registry.bothEnds(
            line.ends.minerToken,
            line.ends.minerChannel,
            wanted.sent.time,
            line.ends.nodeToken,
            line.ends.nodeChannel,
            wanted.received.time
        );
        (Reading memory sent, Reading memory received) = _cuts(line, wanted, miner, node, terms.capacityPpm);
        // what others were paid beyond this order, by one before it, is left for a later one
        uint256 left = terms.total - Math.min(terms.total, line.totalPaid);
        if (left == 0 && wanted.payableTotal > line.paid) revert OrderExceeded(terms.orderId, terms.total);
        uint80 payableTotal = SafeCast.toUint80(Math.min(wanted.payableTotal, line.paid + left));
        uint80 credit = line.credit + (payableTotal > line.paid ? payableTotal - line.paid : 0);
        (uint80 energy, uint96 amount, , ) = _payable(line, credit, store);
        sent.until = terms.until;
        book.claim(wanted.line, payableTotal, sent, received, energy, amount);
        if (energy != 0) _mint(store.token, miner.owner, node.owner, amount, terms.nodeSharePpm);
        else emit NoRoomYet(wanted.line, credit);
    }

    /// Pay out a line's credit, as far as its node's battery has room. Anyone may.
    function collect(bytes32 id) external restricted {
        Claimable memory line = book.claimable(id);
        if (line.credit == 0) revert NothingToCollect(id);
        if (line.held) revert LineIsHeld(id, line.holdCode);
        _requireActive(line.ends.minerToken);
        _requireActive(line.ends.nodeToken);
        Store memory store = registry.storeOf(line.ends.nodeToken);
        (uint80 energy, uint96 amount, uint256 supply, uint256 capacity) = _payable(line, line.credit, store);
        if (energy == 0) revert NoRoom(line.ends.nodeToken, supply, capacity);
        book.pay(id, energy, amount);
        (address miner, address node) = (registry.ownerOf(line.ends.minerToken), registry.ownerOf(line.ends.nodeToken));
        _mint(store.token, miner, node, amount, _terms.nodeSharePpm);
    }

    /// Two attestations of a device with one channel and seq, but another register or time (P-ATT-2): the system is
    /// suspended, so that nothing of its lines is paid until the DAO reinstates it. Anyone may.
    function proveFraud(
        uint256 token,
        uint64 channel,
        uint256 keyNumber,
        Attestation calldata first,
        Attestation calldata second
    ) external restricted {
        KeyAt memory known = registry.keyAt(token, keyNumber);
        bool same = first.register == second.register && first.time == second.time;
        bool inTime = Math.min(first.time, second.time) >= known.from && Math.max(first.time, second.time) < known.to;
        if (first.seq != second.seq || same || !inTime || known.lost) revert NoFraud(token);
        DeviceKey memory key = known.key;
        if (
            !key.attests(_networkDigest, channel, first) || !key.attests(_networkDigest, channel, second)
        ) revert BadAttestation(token, channel);
        bytes32 place = keccak256(abi.encode(token, keyNumber, channel, first.seq));
        if (_fraudProved[place]) revert ProvedBefore(token, channel, first.seq);
        _fraudProved[place] = true;
        registry.suspendForFraud(token);
        emit FraudProved(token, channel, first.seq, msg.sender);
    }

    /// The DAO takes back what a line was credited and not paid.
    function forfeit(bytes32 line) external restricted {
        book.forfeit(line);
    }

    /// The DAO sets the node's share, what of its peak a meter may have measured, and how long an order lives.
    function setParameters(uint256 nodeSharePpm_, uint256 capacityPpm_, uint64 orderLife_) external restricted {
        if (nodeSharePpm_ > PPM) revert OutOfRange(nodeSharePpm_);
        if (capacityPpm_ > type(uint40).max) revert OutOfRange(capacityPpm_);
        if (orderLife_ == 0 || orderLife_ > LONGEST_LIFE) revert OutOfRange(orderLife_);
        (_terms.nodeSharePpm, _terms.capacityPpm) = (uint24(nodeSharePpm_), uint40(capacityPpm_));
        orderLife = orderLife_;
        emit ParametersChanged(nodeSharePpm_, capacityPpm_, orderLife_);
    }

    /// The order whose leaves can be claimed; number 0 while there is none.
    function current() external view returns (bytes32 root, uint64 orderId, uint128 total, uint48 until) {
        return (_root, _terms.orderId, _terms.total, _terms.until);
    }

    function nodeSharePpm() external view returns (uint256) {
        return _terms.nodeSharePpm;
    }

    function capacityPpm() external view returns (uint256) {
        return _terms.capacityPpm;
    }

    function orderAt(uint256 orderId) external view returns (Order memory) {
        return _order(orderId);
    }

    /// Whether an order waits for the DAO.
    function isOpen(uint256 orderId) public view returns (bool) {
        return _orders[orderId].status == OrderStatus.Posted && !_lapsed(orderId);
    }

    function _order(uint256 orderId) private view returns (Order storage order) {
        order = _orders[orderId];
        if (order.status == OrderStatus.None) revert NoSuchOrder(orderId);
    }

    function _lapsed(uint256 orderId) private view returns (bool) {
        return block.timestamp > _orders[orderId].postedAt + orderLife;
    }

    function _decide(uint256 orderId, OrderStatus status, uint8 code) private {
        Order storage order = _order(orderId);
        if (order.status != OrderStatus.Posted) revert OrderNotOpen(orderId, order.status);
        (order.status, order.code, order.decidedBlock) = (status, code, uint64(block.number));
    }

    function _hold(Exclusion calldata exclusion) private {
        if (bytes(exclusion.text).length > MAX_TEXT_BYTES) revert TextTooLong(bytes(exclusion.text).length);
        book.hold(exclusion.line, exclusion.code, exclusion.text);
    }

    function _isIn(uint48 until, Claim calldata c) private view returns (bool) {
        bytes32 leaf = keccak256(
            bytes.concat(
                keccak256(
                    abi.encode(
                        until,
                        c.line,
                        uint256(c.sent.register),
                        uint256(c.received.register),
                        c.payableTotal,
                        c.manifest,
                        c.sent.time,
                        c.received.time
                    )
                )
            )
        );
        return MerkleProof.verifyCalldata(c.proof, _root, leaf);
    }

    /// What is known of both ends after the order's cuts; both grew by at least what is payable.
    function _cuts(
        Claimable memory line,
        Claim calldata wanted,
        End memory miner,
        End memory node,
        uint256 capacityPpm_
    ) private view returns (Reading memory sent, Reading memory received) {
        uint256 sentTo;
        uint256 receivedTo;
        sent = _judged(line.ends.minerToken, line.ends.minerChannel, ROLE_SENT, miner, wanted.sent);
        received = _judged(line.ends.nodeToken, line.ends.nodeChannel, ROLE_RECEIVED, node, wanted.received);
        (sent, sentTo) = _cut(wanted.line, line, true, sent, uint256(miner.peakMw) * capacityPpm_);
        (received, receivedTo) = _cut(wanted.line, line, false, received, uint256(node.peakMw) * capacityPpm_);
        uint256 sentGrowth = sentTo - line.baseSent;
        uint256 receivedGrowth = receivedTo - line.baseReceived;
        if (wanted.payableTotal > sentGrowth || wanted.payableTotal > receivedGrowth) {
            revert PayableExceedsGrowth(wanted.payableTotal, sentGrowth, receivedGrowth);
        }
    }

    /// What is known of an end after the order's cut, and the most that all its keys measured up to there. A cut by an
    /// earlier key, when the present one came on while the order was voted on, counts, and changes nothing that is known.
    function _cut(
        bytes32 id,
        Claimable memory line,
        bool minerEnd,
        Reading memory reading,
        uint256 fastest
    ) private view returns (Reading memory, uint256 register) {
        Reading memory known = minerEnd ? line.sent : line.received;
        uint256 carried = minerEnd ? line.carriedSent : line.carriedReceived;
        uint256 token = minerEnd ? line.ends.minerToken : line.ends.nodeToken;
        if (reading.keyNumber >= known.keyNumber) {
            _follows(token, reading, known, fastest);
            return (reading, carried + reading.register);
        }
        Reading memory closing = book.closingOf(id, minerEnd, reading.keyNumber);
        if (closing.time == 0) revert OtherKey(token, reading.keyNumber, known.keyNumber);
        if (reading.register > closing.register) _follows(token, reading, closing, fastest);
        return (known, carried - closing.register + reading.register);
    }

    function _requireBefore(uint64 closedAt, uint64 time) private pure {
        if (closedAt != 0 && time > closedAt) revert ReadingAfterClosing(time, closedAt);
    }

    /// How much of a credit the node's battery has room for, and the tokens for it: what all energy up to it is worth,
    /// less what the energy that was minted before is worth. So no remainder is ever lost.
    function _payable(
        Claimable memory line,
        uint80 credit,
        Store memory store
    ) private view returns (uint80 energy, uint96 amount, uint256 supply, uint256 capacity) {
        uint256 factor = uint256(store.efficiencyPpm) * WEI_NUMERATOR;
        capacity = uint256(store.batteryWh) * WEI_PER_WH;
        supply = store.token.totalSupply();
        if (capacity <= supply) return (0, 0, supply, capacity);
        uint256 before = line.paid - line.forfeited - line.credit;
        uint256 paidNinths = (before * factor) % WEI_DENOMINATOR;
        uint256 room = (capacity - supply) * WEI_DENOMINATOR;
        energy = uint80(Math.min(credit, room > paidNinths ? (room - paidNinths) / factor : 0));
        amount = SafeCast.toUint96((paidNinths + energy * factor) / WEI_DENOMINATOR);
    }

    function _mint(EnergyToken token, address miner, address node, uint256 amount, uint256 sharePpm) private {
        uint256 toNode = (amount * sharePpm) / PPM;
        token.mint(miner, amount - toNode, node, toNode);
    }

    /// A reading follows the known one: by the same key, not earlier, not lower, and not faster than the panel allows
    /// (`fastest`: mW times ppm).
    function _follows(uint256 token, Reading memory reading, Reading memory known, uint256 fastest) private pure {
        if (reading.keyNumber != known.keyNumber) revert OtherKey(token, reading.keyNumber, known.keyNumber);
        if (reading.register < known.register) revert RegisterWentBack(token, reading.register, known.register);
        if (reading.time < known.time) revert ReadingWentBack(token, reading.time, reading.seq);
        uint256 capacity = (fastest * (reading.time - known.time)) / PPM;
        uint256 growth = reading.register - known.register;
        if (growth > capacity) revert RegisterTooFast(token, growth, capacity);
    }

    /// A register that an active system's meter signed by now, with the key that counted then.
    function _read(
        uint256 token,
        uint64 channel,
        uint8 role,
        Attestation calldata attestation
    ) private view returns (Reading memory, End memory end) {
        end = registry.endOf(token, channel, attestation.time);
        return (_judged(token, channel, role, end, attestation), end);
    }

    function _judged(
        uint256 token,
        uint64 channel,
        uint8 role,
        End memory end,
        Attestation calldata attestation
    ) private view returns (Reading memory) {
        if (end.status != Status.Active) revert SystemNotActive(token);
        if (end.role != role || (end.kind == Kind.Miner) != (role == ROLE_SENT)) revert WrongEnd(token, channel);
        if (!end.key.attests(_networkDigest, channel, attestation)) revert BadAttestation(token, channel);
        if (attestation.time > block.timestamp) revert AttestationInFuture(attestation.time, block.timestamp);
        return Reading(attestation.time, attestation.register, attestation.seq, end.keyNumber, 0);
    }

    function _requireActive(uint256 token) private view {
        if (registry.statusOf(token) != Status.Active) revert SystemNotActive(token);
    }
}
