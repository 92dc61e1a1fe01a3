// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {IERC4906} from "@openzeppelin/contracts/interfaces/IERC4906.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {Authority} from "./Authority.sol";
import {Attestation, DeviceKey, DeviceKeys} from "./DeviceKeys.sol";
import {EnergyToken} from "./EnergyToken.sol";
import {SoulBound} from "./SoulBound.sol";
import {Channel, Kind, Status, System, Systems} from "./Systems.sol";

/// A status and when it began, unix seconds.
struct StatusAt {
    uint64 time;
    Status status;
}

/// A key and the time in which its signatures count: from ≤ t < to, unix seconds.
struct KeyAt {
    DeviceKey key;
    uint64 from;
    uint64 to;
    bool lost; // the DAO replaced it: what it signs proves nothing any more
}

/// What settlement asks of a channel at a time.
struct Meter {
    DeviceKey key;
    uint16 keyNumber; // counted from 0, as the system's keys came
    Kind kind;
    Status status;
    Channel channel;
}

/// What the operator keeps of a system: where it is, what it is, when it was written.
struct Record {
    bytes32 digest;
    uint64 time;
    string uri;
}

/// What settlement asks of a system again and again, in one word. Its token never moves, so its owner is here too.
struct Head {
    Status status;
    Kind kind;
    uint16 keys; // how many it had
    uint48 keyFrom; // when the newest began to count
    address owner;
}

/// What a node has room for, and in which token, in one word.
struct Store {
    EnergyToken token;
    uint32 efficiencyPpm;
    uint64 batteryWh;
}

/// One end of a line as a claim asks for it: a system, one of its channels, the key whose signatures counted at a time.
struct End {
    DeviceKey key;
    uint16 keyNumber;
    Kind kind;
    Status status;
    uint8 role;
    uint64 peakMw;
    address owner;
}

enum Topic {
    HardwareStatus,
    MiningPool
}

/// Miners and storage nodes: application with proof of possession, approval by the DAO, a soul-bound token.
contract MinerRegistry is SoulBound, AccessManaged {
    using DeviceKeys for DeviceKey;
    using Systems for System;

    uint64 private constant FOREVER = type(uint64).max;
    uint64 private constant ROTATION_SECONDS = 1 days; // so that a system's keys stay few

    struct Application {
        address applicant;
        uint256 tokenId; // 0 while it waits
        bytes32 content; // what the device signed
        System system;
    }

    event Applied(
        uint256 indexed applicationId,
        address indexed applicant,
        bytes16 deviceId,
        Kind kind,
        bytes32 content
    );
    event Registered(uint256 indexed tokenId, uint256 indexed applicationId, bytes16 indexed deviceId, Kind kind);
    event ApplicationSkipped(uint256 indexed applicationId, string why);
    event StatusChanged(uint256 indexed tokenId, Status status, string reason);
    event EnergyTokenMade(uint256 indexed tokenId, address token);
    event KeyRequested(uint256 indexed tokenId, bytes16 deviceId);
    event KeyChanged(uint256 indexed tokenId, bytes16 oldDevice, bytes16 newDevice);
    event RecordSet(uint256 indexed tokenId, Topic indexed topic, bytes32 digest, string uri);
    event Consumed(uint256 indexed tokenId, uint256 amount);

    /// The signature does not prove that the applicant holds the device key, or is for other fields (P-ID-5).
    error PossessionNotProved(bytes16 deviceId, address applicant);
    error HandOverNotProved(bytes16 oldDevice, bytes16 newDevice);
    error DeviceAlreadyRegistered(bytes16 deviceId, uint256 tokenId);
    error NotRegistered(uint256 tokenId);
    error NotOwner(uint256 tokenId, address caller);
    error NoSuchChannel(uint256 tokenId, uint64 channel);
    error NoSuchKey(uint256 tokenId, uint256 keyNumber);
    error NoKeyAt(uint256 tokenId, uint64 time);
    error TooSoon(uint256 tokenId, uint64 time);
    error KeyNotRequested(uint256 tokenId, bytes16 deviceId);
    error NotAStatus(Status status);

    bytes32 public immutable networkDigest;
    EnergyToken public immutable energyTokenCode;

    uint256 public applications;
    uint256 public registrations;
    mapping(uint256 applicationId => Application) private _applications;
    mapping(uint256 tokenId => uint256 applicationId) private _applicationOf;
    mapping(uint256 tokenId => mapping(uint256 keyNumber => KeyAt)) private _keys;
    mapping(uint256 tokenId => DeviceKey) private _requestedKey;
    mapping(uint256 tokenId => Head) private _heads;
    mapping(uint256 tokenId => mapping(uint64 number => Channel)) private _channels;
    mapping(uint256 tokenId => StatusAt[]) private _history;
    mapping(uint256 tokenId => mapping(Topic => Record)) private _records;
    mapping(uint256 tokenId => Store) private _stores;
    mapping(uint256 tokenId => uint256) public consumed; // energy taken out, wei of an energy token
    mapping(bytes16 deviceId => uint256 tokenId) public tokenOf; // also of keys that were replaced
    mapping(bytes16 deviceId => uint64) public nonceOf;
    mapping(address owner => uint256) public activeSystems;

    constructor(
        address authority_,
        EnergyToken energyTokenCode_
    ) ERC721("MaxCoin Green Energy System", "MGSYS") AccessManaged(authority_) {
        energyTokenCode = energyTokenCode_;
        networkDigest = sha256(bytes(network()));
    }

    /// CAIP-10 id of this registry, lower case: the name of the deployment (P-ID-3).
    function network() public view returns (string memory) {
        return string.concat("eip155:", Strings.toString(block.chainid), ":", Strings.toHexString(address(this)));
    }

    /// Apply for a soul-bound token; r, s prove that the device's key is the applicant's and signed these fields.
    function applyFor(System calldata system, bytes32 r, bytes32 s) external returns (uint256 applicationId) {
        system.check();
        bytes32 content = _proved(system, system.key, msg.sender, r, s);
        applicationId = ++applications;
        Application storage application = _applications[applicationId];
        application.applicant = msg.sender;
        application.content = content;
        application.system = system;
        emit Applied(applicationId, msg.sender, system.key.deviceId(), system.kind, content);
    }

    /// The DAO approves what it voted on: the applicant gets the token, a storage node its energy token. An application
    /// that is unknown, another than voted on, or of a device that is registered already is skipped, so that one does
    /// not stop the others of a vote.
    function admit(uint256 applicationId, bytes32 content) external restricted returns (uint256 tokenId) {
        Application storage application = _applications[applicationId];
        if (application.applicant == address(0)) return _skip(applicationId, "there is no such application");
        if (application.content != content) return _skip(applicationId, "its content is not the one voted on");
        DeviceKey memory key = application.system.key;
        bytes16 device = key.deviceId();
        if (tokenOf[device] != 0) return _skip(applicationId, "its device is registered already");
        tokenId = ++registrations;
        application.tokenId = tokenId;
        tokenOf[device] = tokenId;
        _applicationOf[tokenId] = applicationId;
        _keys[tokenId][0] = KeyAt(key, uint64(block.timestamp), FOREVER, false);
        Head storage head = _heads[tokenId];
        (head.keys, head.keyFrom, head.owner) = (1, uint48(block.timestamp), application.applicant);
        _mint(application.applicant, tokenId);
        _describe(tokenId, application.system);
        emit Registered(tokenId, applicationId, device, application.system.kind);
        _setStatus(tokenId, Status.Active, "registered");
        if (application.system.kind == Kind.StorageNode) _makeEnergyToken(tokenId);
    }

    /// The DAO suspends, reinstates or ends a system, and says why.
    function setStatus(uint256 tokenId, Status status, string calldata reason) external restricted {
        _requireOwned(tokenId);
        if (status == Status.None) revert NotAStatus(status);
        _setStatus(tokenId, status, reason);
    }

    /// Two registers of one instant were proved: an active system is suspended, and only the DAO reinstates it.
    function suspendForFraud(uint256 tokenId) external restricted {
        if (statusOf(tokenId) == Status.Active) _setStatus(tokenId, Status.Suspended, "fraud proof");
    }

    /// The old key hands over to a new one, which proves possession: from now on the new one signs.
    function rotateKey(
        uint256 tokenId,
        DeviceKey calldata newKey,
        bytes32[2] calldata byOldKey,
        bytes32[2] calldata byNewKey
    ) external {
        _requireOwner(tokenId);
        KeyAt memory old = keyAt(tokenId, keyCount(tokenId) - 1);
        if (block.timestamp < old.from + ROTATION_SECONDS) revert TooSoon(tokenId, old.from + ROTATION_SECONDS);
        DeviceKey memory oldKey = old.key;
        bytes16 newDevice = newKey.deviceId();
        if (!oldKey.handsOver(networkDigest, newDevice, byOldKey[0], byOldKey[1])) {
            revert HandOverNotProved(oldKey.deviceId(), newDevice);
        }
        _proved(systemOf(tokenId), newKey, msg.sender, byNewKey[0], byNewKey[1]);
        delete _requestedKey[tokenId];
        _changeKey(tokenId, newKey);
    }

    /// Without the old key (lost, broken): the owner asks, the DAO replaces it after a vote and its delay.
    function requestKey(uint256 tokenId, DeviceKey calldata newKey, bytes32 r, bytes32 s) external {
        _requireOwner(tokenId);
        _proved(systemOf(tokenId), newKey, msg.sender, r, s);
        _requestedKey[tokenId] = newKey;
        emit KeyRequested(tokenId, newKey.deviceId());
    }

    /// The DAO gives a system the key that its owner asked for, where the old one cannot hand over.
    function replaceKey(uint256 tokenId, bytes16 newDevice) external restricted {
        DeviceKey memory newKey = _requestedKey[tokenId];
        if (newKey.x == 0 || newKey.deviceId() != newDevice) revert KeyNotRequested(tokenId, newDevice);
        delete _requestedKey[tokenId];
        _requireNew(newDevice);
        uint256 keys = keyCount(tokenId);
        for (uint256 k = 0; k < keys; ++k) _keys[tokenId][k].lost = true; // none of them proves anything any more
        _changeKey(tokenId, newKey);
    }

    /// The operator keeps hardware status and mining pool data of a system.
    function setRecord(uint256 tokenId, Topic topic, bytes32 digest, string calldata uri) external restricted {
        _requireOwned(tokenId);
        if (bytes(uri).length > Systems.MAX_URI_BYTES) revert Systems.UriTooLong(bytes(uri).length);
        _records[tokenId][topic] = Record(digest, uint64(block.timestamp), uri);
        emit RecordSet(tokenId, topic, digest, uri);
        emit IERC4906.MetadataUpdate(tokenId);
    }

    /// Energy was taken out of storage for this system.
    function recordConsumption(uint256 tokenId, uint256 amount) external restricted {
        consumed[tokenId] += amount;
        emit Consumed(tokenId, amount);
    }

    /// Every status that a system had, oldest first: verdicts depend on the one at the time of measurement.
    function historyOf(uint256 tokenId) external view returns (StatusAt[] memory) {
        return _history[tokenId];
    }

    function keyCount(uint256 tokenId) public view returns (uint256) {
        if (_heads[tokenId].keys == 0) revert NotRegistered(tokenId);
        return _heads[tokenId].keys;
    }

    function keyAt(uint256 tokenId, uint256 keyNumber) public view returns (KeyAt memory) {
        if (keyNumber >= keyCount(tokenId)) revert NoSuchKey(tokenId, keyNumber);
        return _keys[tokenId][keyNumber];
    }

    function recordOf(uint256 tokenId, Topic topic) external view returns (Record memory) {
        return _records[tokenId][topic];
    }

    function applicationOf(uint256 applicationId) external view returns (Application memory) {
        return _applications[applicationId];
    }

    function requestedKeyOf(uint256 tokenId) external view returns (DeviceKey memory) {
        return _requestedKey[tokenId];
    }

    /// The registered system behind a token, with its present key.
    function systemOf(uint256 tokenId) public view returns (System memory system) {
        system = _applications[_applicationOf[tokenId]].system;
        system.key = keyAt(tokenId, keyCount(tokenId) - 1).key;
    }

    /// A channel of a system, and the key whose signatures counted at a time.
    function meterOf(uint256 tokenId, uint64 channel, uint64 time) external view returns (Meter memory meter) {
        Head memory head = _heads[tokenId];
        (meter.kind, meter.status) = (head.kind, head.status);
        if (head.status == Status.None) revert NotRegistered(tokenId);
        meter.channel = _channels[tokenId][channel];
        if (meter.channel.peakMw == 0) revert NoSuchChannel(tokenId, channel);
        meter.keyNumber = _keyNumberAt(tokenId, head, time);
        meter.key = _keys[tokenId][meter.keyNumber].key;
    }

    /// What a claim asks, at once: both ends at their times, and the node's storage.
    function bothEnds(
        uint256 minerToken,
        uint64 minerChannel,
        uint64 sentAt,
        uint256 nodeToken,
        uint64 nodeChannel,
        uint64 receivedAt
    ) external view returns (End memory miner, End memory node, Store memory store) {
        miner = endOf(minerToken, minerChannel, sentAt);
        node = endOf(nodeToken, nodeChannel, receivedAt);
        store = _stores[nodeToken];
    }

    function endOf(uint256 tokenId, uint64 channel, uint64 time) public view returns (End memory end) {
        Head memory head = _heads[tokenId];
        if (head.status == Status.None) revert NotRegistered(tokenId);
        Channel storage found = _channels[tokenId][channel];
        (end.role, end.peakMw) = (found.role, found.peakMw);
        if (end.peakMw == 0) revert NoSuchChannel(tokenId, channel);
        (end.kind, end.status, end.owner) = (head.kind, head.status, head.owner);
        end.keyNumber = _keyNumberAt(tokenId, head, time);
        end.key = _keys[tokenId][end.keyNumber].key;
    }

    function statusOf(uint256 tokenId) public view returns (Status) {
        return _heads[tokenId].status;
    }

    /// What room depends on: a node's battery and efficiency.
    function storageOf(uint256 tokenId) external view returns (uint64 batteryWh, uint32 efficiencyPpm) {
        Store storage store = _stores[tokenId];
        return (store.batteryWh, store.efficiencyPpm);
    }

    function storeOf(uint256 tokenId) external view returns (Store memory) {
        return _stores[tokenId];
    }

    /// A storage node's energy token: the one that is real.
    function energyTokenOf(uint256 tokenId) external view returns (EnergyToken) {
        return _stores[tokenId].token;
    }

    function tokenURI(uint256 tokenId) public view override returns (string memory) {
        return systemOf(tokenId).card(tokenId, statusOf(tokenId));
    }

    function supportsInterface(bytes4 interfaceId) public view override returns (bool) {
        return interfaceId == 0x49064906 || super.supportsInterface(interfaceId); // ERC-4906
    }

    /// Check P-ID-5 and use up the device's nonce; return the content's digest.
    function _proved(
        System memory system,
        DeviceKey memory key,
        address applicant,
        bytes32 r,
        bytes32 s
    ) private returns (bytes32 content) {
        bytes16 device = key.deviceId();
        _requireNew(device);
        content = system.digest();
        if (!key.provesPossession(networkDigest, applicant, nonceOf[device]++, content, r, s)) {
            revert PossessionNotProved(device, applicant);
        }
    }

    function _changeKey(uint256 tokenId, DeviceKey memory newKey) private {
        Head storage head = _heads[tokenId];
        KeyAt storage old = _keys[tokenId][head.keys - 1];
        bytes16 newDevice = newKey.deviceId();
        emit KeyChanged(tokenId, old.key.deviceId(), newDevice);
        uint64 from = uint64(block.timestamp) + 1; // what was signed by now is the old key's
        old.to = from;
        _keys[tokenId][head.keys] = KeyAt(newKey, from, FOREVER, false);
        (head.keys, head.keyFrom) = (head.keys + 1, uint48(from));
        tokenOf[newDevice] = tokenId;
        emit IERC4906.MetadataUpdate(tokenId);
    }

    function _describe(uint256 tokenId, System storage system) private {
        Store storage store = _stores[tokenId];
        (store.efficiencyPpm, store.batteryWh) = (system.efficiencyPpm, system.batteryWh);
        _heads[tokenId].kind = system.kind;
        for (uint256 k = 0; k < system.channels.length; ++k) {
            _channels[tokenId][system.channels[k].number] = system.channels[k];
        }
    }

    function _makeEnergyToken(uint256 tokenId) private {
        address token = Clones.cloneWithImmutableArgs(address(energyTokenCode), abi.encode(tokenId));
        Authority(authority()).setImplementation(token, address(energyTokenCode));
        _stores[tokenId].token = EnergyToken(token);
        emit EnergyTokenMade(tokenId, token);
    }

    /// The newest key counts from its beginning on; only for times before it the others are looked at.
    function _keyNumberAt(uint256 tokenId, Head memory head, uint64 time) private view returns (uint16) {
        if (time >= head.keyFrom) return head.keys - 1;
        for (uint16 k = head.keys - 1; k > 0; --k) {
            KeyAt storage entry = _keys[tokenId][k - 1];
            if (time >= entry.from && time < entry.to) return k - 1;
        }
        revert NoKeyAt(tokenId, time);
    }

    function _setStatus(uint256 tokenId, Status status, string memory reason) private {
        address owner = ownerOf(tokenId);
        if (statusOf(tokenId) == Status.Active) --activeSystems[owner];
        if (status == Status.Active) ++activeSystems[owner];
        _heads[tokenId].status = status;
        _history[tokenId].push(StatusAt(uint64(block.timestamp), status));
        emit StatusChanged(tokenId, status, reason);
        emit IERC4906.MetadataUpdate(tokenId);
    }

    function _skip(uint256 applicationId, string memory why) private returns (uint256) {
        emit ApplicationSkipped(applicationId, why);
        return 0;
    }

    function _requireNew(bytes16 device) private view {
        if (tokenOf[device] != 0) revert DeviceAlreadyRegistered(device, tokenOf[device]);
    }

    function _requireOwner(uint256 tokenId) private view {
        if (ownerOf(tokenId) != msg.sender) revert NotOwner(tokenId, msg.sender);
    }
}
