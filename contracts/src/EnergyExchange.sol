// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {CarbonToken} from "./Coins.sol";
import {Attestation, DeviceKeys, DeviceKey} from "./DeviceKeys.sol";
import {EnergyToken} from "./EnergyToken.sol";
import {Meter, MinerRegistry} from "./MinerRegistry.sol";
import {Channel, Status} from "./Systems.sol";

enum RequestStatus {
    None,
    Open,
    Accepted,
    Finished, // the node's meter closed the delivery
    Settled,
    Refused,
    Cancelled
}

/// A miner asks a node to store what it will send. Energy in mW·s.
struct StorageRequest {
    uint64 minerToken;
    uint64 nodeToken;
    uint128 energy;
    uint64 expiresAt;
    RequestStatus status;
}

/// A register of one end of a delivery, and the number of the key that signed it.
struct Point {
    uint64 time;
    uint64 register;
    uint64 seq;
    uint16 keyNumber;
}

/// Energy that a buyer takes out of a node's storage, with its tokens in escrow. Energy in mW·s, tokens in wei.
struct TakeOut {
    address buyer;
    uint64 buyerToken;
    uint64 buyerChannel;
    uint64 nodeToken;
    uint64 nodeChannel;
    RequestStatus status;
    uint64 requestedAt;
    uint64 expiresAt; // for the node to accept
    uint64 deliverBy; // for the node to deliver
    uint64 silentAt; // when the figure of one meter is enough
    uint128 amount; // of energy tokens
    uint128 carbon;
    Point nodeStart;
    Point nodeEnd;
    Point buyerStart;
    Point buyerEnd;
}

/// Storage requests and take-out requests between owners and storage nodes.
///
/// A take-out: the buyer escrows tokens; the node accepts with both meters' registers of now; energy flows; the node shows
/// its closing register, the buyer's next one settles it: what both meters saw is burned, the rest is the buyer's again.
/// Who stays silent for two weeks leaves the figure to the other, or to the DAO; a guardian's stop is shorter than that.
contract EnergyExchange is AccessManaged {
    using DeviceKeys for DeviceKey;
    using SafeERC20 for IERC20;

    uint8 private constant ROLE_RECEIVED = 2;
    uint8 private constant ROLE_DELIVERED = 3;
    uint256 private constant PPM = 1_000_000;
    /// 1 mW·s is 2500·10⁶/9 wei of a token of 3.6·10⁹ mW·s.
    uint256 private constant WEI_NUMERATOR = 2_500_000_000;
    uint256 private constant WEI_DENOMINATOR = 9;
    uint256 private constant FUTURE_SECONDS = 300;
    uint256 private constant FRESH_SECONDS = 1 hours;
    uint256 private constant SMALLEST = 1e15; // 1 Wh: a request takes a channel
    uint64 public constant SILENCE_SECONDS = 14 days;
    uint64 public constant DELIVERY_SECONDS = 7 days;
    uint64 public constant LONGEST_OFFER = 30 days;

    event StorageRequested(uint256 indexed id, uint256 indexed minerToken, uint256 indexed nodeToken, uint128 energy);
    event StorageAnswered(uint256 indexed id, RequestStatus status);
    event TakeOutRequested(uint256 indexed id, uint256 indexed buyerToken, uint256 indexed nodeToken, uint256 amount);
    event TakeOutAccepted(uint256 indexed id, uint64 deliverBy);
    event TakeOutEnded(uint256 indexed id, RequestStatus status);
    event MeterRead(uint256 indexed id, bool indexed nodeEnd, uint64 time, uint64 register);
    event Delivered(uint256 indexed id, uint256 energy, uint256 burned, uint256 refunded);
    event CarbonChanged(uint256 carbonPerKwh);

    error NotOwner(uint256 tokenId, address caller);
    error WrongKind(uint256 token);
    error SystemNotActive(uint256 token);
    error WrongStatus(uint256 id, RequestStatus status);
    error Expired(uint256 id, uint64 time);
    error NotYet(uint256 id, uint64 time);
    error OfferOutOfRange(uint64 expiresAt);
    error NothingAsked();
    error TooMuch(uint256 amount, uint256 most);
    error ChannelBusy(uint256 token, uint64 channel, uint256 id);
    error WrongChannel(uint256 token, uint64 channel, uint8 role);
    error BadAttestation(uint256 token, uint64 channel);
    error AttestationInFuture(uint64 time, uint256 blockTime);
    error ReadingWentBack(uint256 token, uint64 time, uint64 seq);
    error OtherKey(uint256 token, uint64 keyNumber, uint64 known);
    error NotFresh(uint256 token, uint64 time);
    error ReadingTooEarly(uint256 token, uint64 time, uint64 wanted);
    error NothingOwed(address account);

    MinerRegistry public immutable registry;
    CarbonToken public immutable carbon;
    bytes32 private immutable _networkDigest;

    uint256 public carbonPerKwh;
    uint256 public storageRequests;
    uint256 public takeOuts;
    mapping(uint256 id => StorageRequest) private _storage;
    mapping(uint256 id => TakeOut) private _takeOuts;
    mapping(uint256 token => mapping(uint64 channel => uint256 id)) public busyWith;
    mapping(bytes32 meter => uint64) private _lastSeq; // of a system's channel and key
    mapping(address account => mapping(IERC20 token => uint256)) public owed;

    constructor(address authority, MinerRegistry registry_, CarbonToken carbon_) AccessManaged(authority) {
        (registry, carbon, _networkDigest) = (registry_, carbon_, registry_.networkDigest());
    }

    // storage: a miner asks, a node answers

    /// A miner's owner asks a node to store so much energy, until a time.
    function requestStorage(
        uint64 minerToken,
        uint64 nodeToken,
        uint128 energy,
        uint64 expiresAt
    ) external returns (uint256 id) {
        _requireOwner(minerToken);
        _requireNode(nodeToken);
        _checkOffer(expiresAt);
        if (energy == 0) revert NothingAsked();
        id = ++storageRequests;
        _storage[id] = StorageRequest(minerToken, nodeToken, energy, expiresAt, RequestStatus.Open);
        emit StorageRequested(id, minerToken, nodeToken, energy);
    }

    /// The node accepts or refuses, the miner may cancel, while the request is open.
    function answerStorage(uint256 id, bool accepted) external {
        StorageRequest storage request = _storage[id];
        if (request.status != RequestStatus.Open) revert WrongStatus(id, request.status);
        bool isMiner = registry.ownerOf(request.minerToken) == msg.sender;
        bool isNode = registry.ownerOf(request.nodeToken) == msg.sender;
        if (!isNode && (accepted || !isMiner)) revert NotOwner(request.nodeToken, msg.sender);
        if (accepted && block.timestamp > request.expiresAt) revert Expired(id, request.expiresAt);
        if (accepted) request.status = RequestStatus.Accepted;
        else request.status = isNode ? RequestStatus.Refused : RequestStatus.Cancelled;
        emit StorageAnswered(id, request.status);
    }

    // take-out: escrow, delivery, settlement

    /// The buyer asks for energy of a node: its tokens, and the carbon that goes with them, are in escrow from now on.
    function requestTakeOut(
        uint64 buyerToken,
        uint64 buyerChannel,
        uint64 nodeToken,
        uint128 amount,
        uint64 expiresAt
    ) external restricted returns (uint256 id) {
        _requireOwner(buyerToken);
        _requireNode(nodeToken);
        _checkOffer(expiresAt);
        _requireMeter(buyerToken, buyerChannel, ROLE_RECEIVED);
        (uint64 batteryWh, ) = registry.storageOf(nodeToken);
        if (amount < SMALLEST) revert NothingAsked();
        if (amount > uint256(batteryWh) * 1e15) revert TooMuch(amount, uint256(batteryWh) * 1e15);
        id = ++takeOuts;
        _occupy(buyerToken, buyerChannel, id);
        TakeOut storage request = _takeOuts[id];
        request.buyer = msg.sender;
        (request.buyerToken, request.buyerChannel, request.nodeToken) = (buyerToken, buyerChannel, nodeToken);
        request.status = RequestStatus.Open;
        (request.requestedAt, request.expiresAt, request.amount) = (uint64(block.timestamp), expiresAt, amount);
        request.carbon = SafeCast.toUint128(Math.mulDiv(amount, carbonPerKwh, 1e18, Math.Rounding.Ceil));
        emit TakeOutRequested(id, buyerToken, nodeToken, amount);
        IERC20(registry.energyTokenOf(nodeToken)).safeTransferFrom(msg.sender, address(this), amount);
        if (request.carbon != 0) IERC20(carbon).safeTransferFrom(msg.sender, address(this), request.carbon);
    }

    /// The node accepts, with the registers of its own and of the buyer's meter before the delivery.
    function accept(
        uint256 id,
        uint64 nodeChannel,
        Attestation calldata nodeStart,
        Attestation calldata buyerStart
    ) external restricted {
        TakeOut storage request = _takeOut(id, RequestStatus.Open);
        _requireOwner(request.nodeToken);
        if (block.timestamp > request.expiresAt) revert Expired(id, request.expiresAt);
        _requireMeter(request.nodeToken, nodeChannel, ROLE_DELIVERED);
        _requireMeter(request.buyerToken, request.buyerChannel, ROLE_RECEIVED);
        _occupy(request.nodeToken, nodeChannel, id);
        request.nodeChannel = nodeChannel;
        request.nodeStart = _fresh(request.nodeToken, nodeChannel, request.requestedAt, nodeStart);
        request.buyerStart = _fresh(request.buyerToken, request.buyerChannel, request.requestedAt, buyerStart);
        request.status = RequestStatus.Accepted;
        request.deliverBy = uint64(block.timestamp) + DELIVERY_SECONDS;
        request.silentAt = request.deliverBy + SILENCE_SECONDS;
        emit TakeOutAccepted(id, request.deliverBy);
    }

    /// The node refuses, or the buyer cancels, what was not accepted: the escrow is the buyer's again.
    function decline(uint256 id) external {
        TakeOut storage request = _takeOut(id, RequestStatus.Open);
        bool isNode = registry.ownerOf(request.nodeToken) == msg.sender;
        if (!isNode && request.buyer != msg.sender) revert NotOwner(request.nodeToken, msg.sender);
        _end(id, request, isNode ? RequestStatus.Refused : RequestStatus.Cancelled, 0);
    }

    /// The node shows its register of after the delivery; a later one takes an earlier one's place. From then on the buyer
    /// has two weeks to show its own.
    function finish(uint256 id, Attestation calldata end) external restricted {
        TakeOut storage request = _underWay(id);
        _requireOwner(request.nodeToken);
        if (block.timestamp > request.deliverBy + SILENCE_SECONDS) {
            revert Expired(id, request.deliverBy + SILENCE_SECONDS);
        }
        Point memory point = _read(request.nodeToken, request.nodeChannel, end);
        _follows(request.nodeToken, point, request.nodeEnd.time == 0 ? request.nodeStart : request.nodeEnd);
        if (point.time > request.deliverBy) revert Expired(id, request.deliverBy);
        request.nodeEnd = point;
        request.status = RequestStatus.Finished;
        request.silentAt = uint64(block.timestamp) + SILENCE_SECONDS;
        emit MeterRead(id, true, point.time, point.register);
        if (request.buyerEnd.time >= point.time) _settle(id, request);
    }

    /// The buyer's meter, read after the delivery. Anyone may show it; with the node's closing it settles.
    function confirm(uint256 id, Attestation calldata end) external restricted {
        TakeOut storage request = _underWay(id);
        Point memory point = _read(request.buyerToken, request.buyerChannel, end);
        _follows(request.buyerToken, point, request.buyerEnd.time == 0 ? request.buyerStart : request.buyerEnd);
        bool finished = request.status == RequestStatus.Finished;
        uint64 wanted = finished ? request.nodeEnd.time : request.deliverBy;
        if (point.time < wanted) revert ReadingTooEarly(request.buyerToken, point.time, wanted);
        request.buyerEnd = point;
        emit MeterRead(id, false, point.time, point.register);
        if (finished) _settle(id, request);
    }

    /// Settle what one meter said, when the other was silent for two weeks. Without any figure the escrow is the buyer's.
    function settle(uint256 id) external restricted {
        TakeOut storage request = _underWay(id);
        if (block.timestamp <= request.silentAt) revert NotYet(id, request.silentAt);
        _settle(id, request);
    }

    /// The DAO decides what was delivered, before the meters or their silence did.
    function decide(uint256 id, uint256 energy) external restricted {
        TakeOut storage request = _underWay(id);
        _end(id, request, RequestStatus.Settled, energy);
    }

    /// Take what is yours again.
    function withdraw(IERC20 token) external {
        uint256 amount = owed[msg.sender][token];
        if (amount == 0) revert NothingOwed(msg.sender);
        owed[msg.sender][token] = 0;
        token.safeTransfer(msg.sender, amount);
    }

    /// The DAO sets how much CarbonToken is burned with a delivered kWh.
    function setCarbon(uint256 carbonPerKwh_) external restricted {
        if (carbonPerKwh_ > 1_000e18) revert TooMuch(carbonPerKwh_, 1_000e18);
        carbonPerKwh = carbonPerKwh_;
        emit CarbonChanged(carbonPerKwh_);
    }

    function storageAt(uint256 id) external view returns (StorageRequest memory) {
        return _storage[id];
    }

    function takeOutAt(uint256 id) external view returns (TakeOut memory) {
        return _takeOuts[id];
    }

    /// min(delivered, received + the meter's error, what the node can give in the time), mW·s; of one meter alone when
    /// the other was silent.
    function measured(uint256 id) public view returns (uint256 energy) {
        TakeOut storage request = _takeOuts[id];
        if (request.nodeEnd.time == 0 && request.buyerEnd.time == 0) return 0;
        energy = type(uint256).max;
        if (request.nodeEnd.time != 0) {
            energy = request.nodeEnd.register - request.nodeStart.register;
            Channel memory channel = _channel(request.nodeToken, request.nodeChannel, request.nodeEnd.time);
            uint256 lasted = request.nodeEnd.time - request.nodeStart.time + 1;
            energy = Math.min(energy, uint256(channel.peakMw) * lasted);
        }
        if (request.buyerEnd.time != 0) {
            uint256 received = request.buyerEnd.register - request.buyerStart.register;
            Channel memory channel = _channel(request.buyerToken, request.buyerChannel, request.buyerEnd.time);
            uint256 lasted = request.buyerEnd.time - request.buyerStart.time;
            uint256 slack = Math.ceilDiv(received * channel.errorPpm, PPM) + uint256(channel.offsetMw) * lasted;
            energy = request.nodeEnd.time == 0 ? received : Math.min(energy, received + slack);
        }
    }

    function _settle(uint256 id, TakeOut storage request) private {
        _end(id, request, RequestStatus.Settled, measured(id));
    }

    /// Burn what was delivered, within what was asked for; the rest is the buyer's.
    function _end(uint256 id, TakeOut storage request, RequestStatus status, uint256 energy) private {
        request.status = status;
        delete busyWith[request.buyerToken][request.buyerChannel];
        if (request.nodeStart.time != 0) delete busyWith[request.nodeToken][request.nodeChannel];
        EnergyToken token = registry.energyTokenOf(request.nodeToken);
        uint256 most = request.amount;
        uint256 burned = energy >= most ? most : Math.min(most, (energy * WEI_NUMERATOR) / WEI_DENOMINATOR);
        uint256 carbonBurned = most == 0 ? 0 : Math.mulDiv(request.carbon, burned, most);
        owed[request.buyer][IERC20(token)] += most - burned;
        owed[request.buyer][IERC20(carbon)] += request.carbon - carbonBurned;
        emit TakeOutEnded(id, status);
        if (burned == 0) return;
        emit Delivered(id, energy, burned, most - burned);
        token.burn(burned);
        if (carbonBurned != 0) carbon.burn(carbonBurned);
        registry.recordConsumption(request.buyerToken, burned);
    }

    function _occupy(uint64 token, uint64 channel, uint256 id) private {
        uint256 other = busyWith[token][channel];
        if (other != 0) revert ChannelBusy(token, channel, other);
        busyWith[token][channel] = id;
    }

    function _requireMeter(uint64 token, uint64 channel, uint8 role) private view {
        Meter memory meter = registry.meterOf(token, channel, uint64(block.timestamp));
        if (meter.status != Status.Active) revert SystemNotActive(token);
        if (meter.channel.role != role) revert WrongChannel(token, channel, role);
    }

    /// A register that the meter signed, also one of a system that is suspended meanwhile; the seqs of a key never go back.
    function _read(uint64 token, uint64 channel, Attestation calldata attestation) private returns (Point memory) {
        Meter memory meter = registry.meterOf(token, channel, attestation.time);
        if (!meter.key.attests(_networkDigest, channel, attestation)) revert BadAttestation(token, channel);
        if (attestation.time > block.timestamp + FUTURE_SECONDS) {
            revert AttestationInFuture(attestation.time, block.timestamp);
        }
        bytes32 place = keccak256(abi.encode(token, channel, meter.keyNumber));
        if (attestation.seq < _lastSeq[place]) revert ReadingWentBack(token, attestation.time, attestation.seq);
        _lastSeq[place] = attestation.seq;
        return Point(attestation.time, attestation.register, attestation.seq, meter.keyNumber);
    }

    /// The register before a delivery, by the present key: of now and of after the request, so that nothing earlier counts.
    function _fresh(
        uint64 token,
        uint64 channel,
        uint64 requestedAt,
        Attestation calldata attestation
    ) private returns (Point memory point) {
        if (attestation.time < requestedAt || attestation.time + FRESH_SECONDS < block.timestamp) {
            revert NotFresh(token, attestation.time);
        }
        point = _read(token, channel, attestation);
        uint256 present = registry.keyCount(token) - 1;
        if (point.keyNumber != present) revert OtherKey(token, point.keyNumber, uint64(present));
    }

    /// Later than the known one, by the same key: registers of two keys are not compared, the DAO decides then.
    function _follows(uint64 token, Point memory point, Point memory known) private pure {
        if (point.keyNumber != known.keyNumber) revert OtherKey(token, point.keyNumber, known.keyNumber);
        if (point.time <= known.time || point.register < known.register) {
            revert ReadingWentBack(token, point.time, point.seq);
        }
    }

    function _channel(uint64 token, uint64 channel, uint64 time) private view returns (Channel memory) {
        return registry.meterOf(token, channel, time).channel;
    }

    function _takeOut(uint256 id, RequestStatus wanted) private view returns (TakeOut storage request) {
        request = _takeOuts[id];
        if (request.status != wanted) revert WrongStatus(id, request.status);
    }

    function _underWay(uint256 id) private view returns (TakeOut storage request) {
        request = _takeOuts[id];
        if (request.status != RequestStatus.Accepted && request.status != RequestStatus.Finished) {
            revert WrongStatus(id, request.status);
        }
    }

    function _checkOffer(uint64 expiresAt) private view {
        if (expiresAt <= block.timestamp || expiresAt > block.timestamp + LONGEST_OFFER) {
            revert OfferOutOfRange(expiresAt);
        }
    }

    function _requireOwner(uint64 token) private view {
        if (registry.ownerOf(token) != msg.sender) revert NotOwner(token, msg.sender);
    }

    function _requireNode(uint64 token) private view {
        if (address(registry.energyTokenOf(token)) == address(0)) revert WrongKind(token);
        if (registry.statusOf(token) != Status.Active) revert SystemNotActive(token);
    }
}
