// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Attestation, DeviceKey, DeviceKeys} from "./DeviceKeys.sol";
import {EnergyToken} from "./EnergyToken.sol";
import {Channel, Kind, MinerRegistry, Status, System} from "./MinerRegistry.sol";

/// Lines, payment orders and their payment. Energy in mW·s, times in unix seconds.
///
/// A line leads from a miner's sent channel to a storage node's received channel. Orders are cumulative:
/// each states the total payable since the line opened, so whatever was lost or repeated, only the
/// difference to what was paid is ever paid.
contract EnergySettlement is AccessManaged {
    using DeviceKeys for DeviceKey;

    uint8 private constant ROLE_SENT = 1;
    uint8 private constant ROLE_RECEIVED = 2;
    uint256 private constant PPM = 1_000_000;
    /// 1 mW·s at 10⁶ ppm is 2500·10⁶/9 wei of a token of 3.6·10⁹ mW·s.
    uint256 private constant WEI_NUMERATOR = 2_500;
    uint256 private constant WEI_DENOMINATOR = 9;
    uint256 private constant WEI_PER_WH = 1e15;
    uint256 private constant FUTURE_SECONDS = 300;
    uint8 private constant CODE_OTHER = 64;

    struct Ends {
        uint256 minerToken;
        uint64 minerChannel;
        uint256 nodeToken;
        uint64 nodeChannel;
    }

    /// How much a line may lose: by its resistance, or by a share of what was sent.
    struct Loss {
        uint64 resistanceUohm;
        uint32 lossPpm;
        uint32 maxLossPpm;
    }

    struct Reading {
        uint64 time;
        uint64 register;
        uint64 seq;
    }

    struct Line {
        Ends ends;
        Loss loss;
        Reading baseSent;
        Reading baseReceived;
        Reading sent; // of the last approved order
        Reading received;
        uint256 paid; // payableTotal of the last approved order
        uint256 credit; // approved, not collected
        uint256 acc; // remainder of wei, in ninths
        uint256 openOrder; // 0 when none
        uint64 until; // end of the last approved period
        uint256 minted; // wei paid out
        uint256 collectedBlock; // of the newest payment
    }

    enum OrderStatus {
        None,
        Requested,
        Approved,
        Rejected
    }

    struct Order {
        bytes32 line;
        OrderStatus status;
        uint64 until;
        Reading sent;
        Reading received;
        uint256 payableTotal;
        bytes32 batchRoot;
        bytes32 dataRoot;
        bytes32 manifestDigest;
        uint8 code;
        string text;
        uint256 requestedBlock;
        uint256 decidedBlock;
    }

    struct Request {
        bytes32 line;
        uint64 until;
        uint256 payableTotal;
        bytes32 batchRoot;
        bytes32 dataRoot;
        bytes32 manifestDigest;
        Attestation sent;
        Attestation received;
    }

    event LineOpened(bytes32 indexed line, uint256 indexed minerToken, uint256 indexed nodeToken);
    event OrderRequested(uint256 indexed orderId, bytes32 indexed line, uint64 until, uint256 payableTotal);
    event OrderApproved(uint256 indexed orderId, bytes32 indexed line, uint256 credited);
    event OrderSkipped(uint256 indexed orderId);
    event OrderRejected(uint256 indexed orderId, bytes32 indexed line, uint8 code, string text);
    event Collected(bytes32 indexed line, uint256 energy, uint256 toMiner, uint256 toNode);
    event ParametersChanged(uint256 nodeSharePpm, uint256 capacityPpm);

    error LineExists(bytes32 line);
    error NoSuchLine(bytes32 line);
    error ChannelInUse(uint256 token, uint64 channel, bytes32 line);
    error WrongKind(uint256 token);
    error NoSuchChannel(uint256 token, uint64 channel, uint8 role);
    error SystemNotActive(uint256 token);
    error BadAttestation(uint256 token, uint64 channel);
    error AttestationInFuture(uint64 time, uint256 blockTime);
    error RegisterWentBack(uint256 token, uint64 register, uint64 known);
    error ReadingWentBack(uint256 token, uint64 time, uint64 seq);
    error OrderOpen(bytes32 line, uint256 orderId);
    error NothingPayable(bytes32 line, uint256 payableTotal, uint256 paid);
    error PayableExceedsGrowth(uint256 payableTotal, uint256 sentGrowth, uint256 receivedGrowth);
    error PayableExceedsCapacity(uint256 payableTotal, uint256 capacity);
    error NoSuchOrder(uint256 orderId);
    error OrderNotOpen(uint256 orderId, OrderStatus status);
    error DataRootChanged(uint256 orderId, bytes32 voted, bytes32 stored);
    error NothingToCollect(bytes32 line);
    error NoRoom(uint256 nodeToken, uint256 supply, uint256 capacity);
    error LengthMismatch();
    error ShareOutOfRange(uint256 ppm);

    MinerRegistry public immutable registry;
    bytes32 private immutable _networkDigest;

    uint256 public nodeSharePpm = 100_000;
    uint256 public capacityPpm = 1_250_000;
    uint256 public orders;
    mapping(uint256 orderId => Order) private _orders;
    mapping(bytes32 line => Line) private _lines;
    bytes32[] private _lineIds;
    mapping(bytes32 line => uint256[] orderIds) private _ordersOf;
    mapping(uint256 token => mapping(uint64 channel => bytes32 line)) public lineOf;

    constructor(address authority, MinerRegistry registry_) AccessManaged(authority) {
        registry = registry_;
        _networkDigest = registry_.networkDigest();
    }

    function lineId(Ends memory ends) public pure returns (bytes32) {
        return keccak256(abi.encode(ends.minerToken, ends.minerChannel, ends.nodeToken, ends.nodeChannel));
    }

    /// Open a line with an attestation of each end: its bases.
    function openLine(
        Ends calldata ends,
        Loss calldata loss,
        Attestation calldata sent,
        Attestation calldata received
    ) external restricted returns (bytes32 id) {
        id = lineId(ends);
        Line storage line = _lines[id];
        if (line.ends.minerToken != 0) revert LineExists(id);
        _claim(ends.minerToken, ends.minerChannel, Kind.Miner, ROLE_SENT, id);
        _claim(ends.nodeToken, ends.nodeChannel, Kind.StorageNode, ROLE_RECEIVED, id);
        line.ends = ends;
        line.loss = loss;
        line.baseSent = _checked(ends.minerToken, ends.minerChannel, sent, line.sent);
        line.baseReceived = _checked(ends.nodeToken, ends.nodeChannel, received, line.received);
        line.sent = line.baseSent;
        line.received = line.baseReceived;
        _lineIds.push(id);
        emit LineOpened(id, ends.minerToken, ends.nodeToken);
    }

    /// Ask for payment of everything payable since the line opened, up to both attestations.
    function request(Request calldata wanted) external restricted returns (uint256 orderId) {
        Line storage line = _line(wanted.line);
        if (line.openOrder != 0) revert OrderOpen(wanted.line, line.openOrder);
        if (wanted.payableTotal <= line.paid) revert NothingPayable(wanted.line, wanted.payableTotal, line.paid);
        Ends memory ends = line.ends;
        Reading memory sent = _checked(ends.minerToken, ends.minerChannel, wanted.sent, line.sent);
        Reading memory received = _checked(ends.nodeToken, ends.nodeChannel, wanted.received, line.received);
        _checkBounds(line, wanted.payableTotal, sent, received);
        orderId = ++orders;
        line.openOrder = orderId;
        Order storage order = _orders[orderId];
        order.line = wanted.line;
        order.status = OrderStatus.Requested;
        order.until = wanted.until;
        order.sent = sent;
        order.received = received;
        order.payableTotal = wanted.payableTotal;
        order.batchRoot = wanted.batchRoot;
        order.dataRoot = wanted.dataRoot;
        order.manifestDigest = wanted.manifestDigest;
        order.requestedBlock = block.number;
        _ordersOf[wanted.line].push(orderId);
        emit OrderRequested(orderId, wanted.line, wanted.until, wanted.payableTotal);
    }

    /// The DAO approves orders as they were voted on: the data root pins the evidence. Orders that were
    /// voided meanwhile are skipped, so that one does not stop the others.
    function approve(uint256[] calldata orderIds, bytes32[] calldata dataRoots) external restricted {
        if (orderIds.length != dataRoots.length) revert LengthMismatch();
        for (uint256 k = 0; k < orderIds.length; ++k) {
            Order storage order = _order(orderIds[k]);
            if (order.dataRoot != dataRoots[k]) revert DataRootChanged(orderIds[k], dataRoots[k], order.dataRoot);
            Line storage line = _lines[order.line];
            if (order.status != OrderStatus.Requested || order.payableTotal <= line.paid) {
                emit OrderSkipped(orderIds[k]);
                continue;
            }
            if (!_areActive(line.ends)) {
                _reject(orderIds[k], order, CODE_OTHER, "a system of the line is not active");
                continue;
            }
            uint256 credited = order.payableTotal - line.paid;
            order.status = OrderStatus.Approved;
            order.decidedBlock = block.number;
            line.openOrder = 0;
            line.credit += credited;
            line.paid = order.payableTotal;
            line.sent = order.sent;
            line.received = order.received;
            line.until = order.until;
            emit OrderApproved(orderIds[k], order.line, credited);
        }
    }

    /// The DAO rejects an order: codes 60 data_integrity, 61 mining_history, 62 hardware_integrity, 63 loss, 64 other.
    function reject(uint256 orderId, uint8 code, string calldata text) external restricted {
        Order storage order = _order(orderId);
        if (order.status != OrderStatus.Requested) revert OrderNotOpen(orderId, order.status);
        _reject(orderId, order, code, text);
    }

    /// Pay out a line's credit, as far as its node's battery has room and while both systems are active. Anyone may
    /// call it.
    function collect(bytes32 id) external {
        Line storage line = _line(id);
        if (line.credit == 0) revert NothingToCollect(id);
        _requireActive(line.ends.minerToken);
        _requireActive(line.ends.nodeToken);
        System memory node = registry.systemOf(line.ends.nodeToken);
        EnergyToken token = registry.energyTokenOf(line.ends.nodeToken);
        uint256 factor = uint256(node.efficiencyPpm) * WEI_NUMERATOR;
        uint256 capacity = uint256(node.batteryWh) * WEI_PER_WH;
        uint256 supply = token.totalSupply();
        uint256 room = capacity > supply ? (capacity - supply) * WEI_DENOMINATOR : 0;
        uint256 energy = Math.min(line.credit, room > line.acc ? (room - line.acc) / factor : 0);
        if (energy == 0) revert NoRoom(line.ends.nodeToken, supply, capacity);
        line.credit -= energy;
        uint256 ninths = line.acc + energy * factor;
        line.acc = ninths % WEI_DENOMINATOR;
        uint256 amount = ninths / WEI_DENOMINATOR;
        line.minted += amount;
        line.collectedBlock = block.number;
        uint256 toNode = (amount * nodeSharePpm) / PPM;
        emit Collected(id, energy, amount - toNode, toNode);
        token.mint(registry.ownerOf(line.ends.minerToken), amount - toNode);
        if (toNode != 0) token.mint(registry.ownerOf(line.ends.nodeToken), toNode);
    }

    function setParameters(uint256 nodeSharePpm_, uint256 capacityPpm_) external restricted {
        if (nodeSharePpm_ > PPM) revert ShareOutOfRange(nodeSharePpm_);
        nodeSharePpm = nodeSharePpm_;
        capacityPpm = capacityPpm_;
        emit ParametersChanged(nodeSharePpm_, capacityPpm_);
    }

    function lineAt(bytes32 id) external view returns (Line memory) {
        return _line(id);
    }

    function lineIds() external view returns (bytes32[] memory) {
        return _lineIds;
    }

    function ordersOf(bytes32 id) external view returns (uint256[] memory) {
        return _ordersOf[id];
    }

    function orderAt(uint256 orderId) external view returns (Order memory) {
        return _order(orderId);
    }

    function _line(bytes32 id) private view returns (Line storage line) {
        line = _lines[id];
        if (line.ends.minerToken == 0) revert NoSuchLine(id);
    }

    function _order(uint256 orderId) private view returns (Order storage order) {
        order = _orders[orderId];
        if (order.status == OrderStatus.None) revert NoSuchOrder(orderId);
    }

    function _claim(uint256 token, uint64 channel, Kind kind, uint8 role, bytes32 id) private {
        if (lineOf[token][channel] != 0) revert ChannelInUse(token, channel, lineOf[token][channel]);
        System memory system = registry.systemOf(token);
        if (system.kind != kind) revert WrongKind(token);
        _channel(system, token, channel, role);
        lineOf[token][channel] = id;
    }

    function _channel(
        System memory system,
        uint256 token,
        uint64 channel,
        uint8 role
    ) private pure returns (Channel memory) {
        for (uint256 k = 0; k < system.channels.length; ++k) {
            if (system.channels[k].number == channel && system.channels[k].role == role) return system.channels[k];
        }
        revert NoSuchChannel(token, channel, role);
    }

    function _checked(
        uint256 token,
        uint64 channel,
        Attestation calldata reading,
        Reading storage known
    ) private view returns (Reading memory) {
        _requireActive(token);
        if (!registry.keyOf(token).attests(_networkDigest, channel, reading)) revert BadAttestation(token, channel);
        if (reading.time > block.timestamp + FUTURE_SECONDS) {
            revert AttestationInFuture(reading.time, block.timestamp);
        }
        if (reading.register < known.register) revert RegisterWentBack(token, reading.register, known.register);
        if (reading.time < known.time || reading.seq < known.seq) {
            revert ReadingWentBack(token, reading.time, reading.seq);
        }
        return Reading(reading.time, reading.register, reading.seq);
    }

    function _reject(uint256 orderId, Order storage order, uint8 code, string memory text) private {
        order.status = OrderStatus.Rejected;
        order.decidedBlock = block.number;
        order.code = code;
        order.text = text;
        _lines[order.line].openOrder = 0;
        emit OrderRejected(orderId, order.line, code, text);
    }

    function _areActive(Ends memory ends) private view returns (bool) {
        return
            registry.statusOf(ends.minerToken) == Status.Active && registry.statusOf(ends.nodeToken) == Status.Active;
    }

    function _requireActive(uint256 token) private view {
        if (registry.statusOf(token) != Status.Active) revert SystemNotActive(token);
    }

    function _checkBounds(
        Line storage line,
        uint256 payableTotal,
        Reading memory sent,
        Reading memory received
    ) private view {
        uint256 sentGrowth = sent.register - line.baseSent.register;
        uint256 receivedGrowth = received.register - line.baseReceived.register;
        if (payableTotal > sentGrowth || payableTotal > receivedGrowth) {
            revert PayableExceedsGrowth(payableTotal, sentGrowth, receivedGrowth);
        }
        Ends memory ends = line.ends;
        System memory miner = registry.systemOf(ends.minerToken);
        Channel memory channel = _channel(miner, ends.minerToken, ends.minerChannel, ROLE_SENT);
        uint256 elapsed = sent.time > line.baseSent.time ? sent.time - line.baseSent.time : 0;
        uint256 capacity = (uint256(channel.peakMw) * elapsed * capacityPpm) / PPM;
        if (payableTotal > capacity) revert PayableExceedsCapacity(payableTotal, capacity);
    }
}
