// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {DeviceKey, DeviceKeys} from "./DeviceKeys.sol";
import {EnergyToken} from "./EnergyToken.sol";
import {EnergyTokenFactory} from "./EnergyTokenFactory.sol";
import {SoulBound} from "./SoulBound.sol";

enum Kind {
    Miner,
    StorageNode
}

enum Status {
    None,
    Active,
    Suspended,
    Revoked
}

/// A metered channel: role as in the protocol, peak power mW, meter error ppm and mW.
struct Channel {
    uint64 number;
    uint8 role;
    uint64 peakMw;
    uint32 errorPpm;
    uint32 offsetMw;
}

/// What an applicant states of a clean energy system. Places have one decimal, tenths of a degree.
struct System {
    Kind kind;
    DeviceKey key;
    Channel[] channels;
    bool placed;
    int16 latitudeDeci;
    int16 longitudeDeci;
    uint32 efficiencyPpm;
    uint64 batteryWh;
    bool onlineRequired;
    string uri;
}

/// A status and when it began, unix seconds.
struct StatusAt {
    uint64 time;
    Status status;
}

/// Miners and storage nodes: application with proof of possession, approval by the DAO, a soul-bound token.
contract MinerRegistry is SoulBound, AccessManaged {
    using DeviceKeys for DeviceKey;

    struct Application {
        address applicant;
        uint256 tokenId; // 0 while it waits
        System system;
    }

    event Applied(uint256 indexed applicationId, address indexed applicant, bytes16 deviceId, Kind kind);
    event Registered(uint256 indexed tokenId, uint256 indexed applicationId, bytes16 indexed deviceId, Kind kind);
    event ApplicationSkipped(uint256 indexed applicationId, uint256 indexed tokenId);
    event StatusChanged(uint256 indexed tokenId, Status status, string reason);
    event EnergyTokenMade(uint256 indexed tokenId, address token);

    /// The signature does not prove that the applicant holds the device key (P-ID-5).
    error PossessionNotProved(bytes16 deviceId, address applicant);
    error DeviceAlreadyRegistered(bytes16 deviceId, uint256 tokenId);
    error NoSuchApplication(uint256 applicationId);
    error NoChannels();
    error TooManyChannels(uint256 count);
    error ChannelTwice(uint64 channel);
    error UriTooLong(uint256 bytes_);
    error EfficiencyOutOfRange(uint32 efficiencyPpm);
    error NotRegistered(uint256 tokenId);

    uint256 private constant MAX_CHANNELS = 16;
    uint256 private constant MAX_URI_BYTES = 512;

    /// SHA-256 of the deployment's CAIP-10 name (P-ID-3).
    bytes32 public immutable networkDigest;

    EnergyTokenFactory private immutable _factory;

    uint256 public applications;
    uint256 public registrations;
    mapping(uint256 applicationId => Application) private _applications;
    mapping(uint256 tokenId => uint256 applicationId) private _applicationOf;
    mapping(uint256 tokenId => Status) public statusOf;
    mapping(uint256 tokenId => StatusAt[]) private _history;
    mapping(uint256 tokenId => EnergyToken) public energyTokenOf;
    mapping(bytes16 deviceId => uint256 tokenId) public tokenOf;

    constructor(
        address authority,
        EnergyTokenFactory factory
    ) SoulBound("MaxCoin Green Energy System", "MGSYS") AccessManaged(authority) {
        _factory = factory;
        networkDigest = sha256(bytes(network()));
    }

    /// CAIP-10 id of this registry, lower case: the name of the deployment (P-ID-3).
    function network() public view returns (string memory) {
        return string.concat("eip155:", Strings.toString(block.chainid), ":", Strings.toHexString(address(this)));
    }

    /// Apply for a soul-bound token; r, s prove possession of the device key (P-ID-5).
    function applyFor(System calldata system, bytes32 r, bytes32 s) external returns (uint256 applicationId) {
        bytes16 device = system.key.deviceId();
        if (tokenOf[device] != 0) revert DeviceAlreadyRegistered(device, tokenOf[device]);
        _checkChannels(system.channels);
        if (bytes(system.uri).length > MAX_URI_BYTES) revert UriTooLong(bytes(system.uri).length);
        if (system.efficiencyPpm == 0 || system.efficiencyPpm > 1_000_000) {
            revert EfficiencyOutOfRange(system.efficiencyPpm);
        }
        if (!system.key.provesPossession(networkDigest, msg.sender, r, s)) {
            revert PossessionNotProved(device, msg.sender);
        }
        applicationId = ++applications;
        _applications[applicationId].applicant = msg.sender;
        _applications[applicationId].system = system;
        emit Applied(applicationId, msg.sender, device, system.kind);
    }

    /// The DAO approves: the applicant gets the token, a storage node its energy token. A device that is registered
    /// already is skipped, so that one application does not stop the others of a vote.
    function admit(uint256 applicationId) external restricted returns (uint256 tokenId) {
        Application storage application = _applications[applicationId];
        if (application.applicant == address(0)) revert NoSuchApplication(applicationId);
        bytes16 device = application.system.key.deviceId();
        if (tokenOf[device] != 0) {
            emit ApplicationSkipped(applicationId, tokenOf[device]);
            return 0;
        }
        tokenId = ++registrations;
        application.tokenId = tokenId;
        tokenOf[device] = tokenId;
        _applicationOf[tokenId] = applicationId;
        _mint(application.applicant, tokenId);
        emit Registered(tokenId, applicationId, device, application.system.kind);
        _setStatus(tokenId, Status.Active, "registered");
        if (application.system.kind == Kind.StorageNode) {
            energyTokenOf[tokenId] = _factory.make(IAccessManager(authority()), tokenId);
            emit EnergyTokenMade(tokenId, address(energyTokenOf[tokenId]));
        }
    }

    function setStatus(uint256 tokenId, Status status, string calldata reason) external restricted {
        _requireRegistered(tokenId);
        _setStatus(tokenId, status, reason);
    }

    /// Every status that a system had, oldest first: verdicts depend on the one at the time of measurement.
    function historyOf(uint256 tokenId) external view returns (StatusAt[] memory) {
        return _history[tokenId];
    }

    function applicationOf(uint256 applicationId) external view returns (Application memory) {
        return _applications[applicationId];
    }

    /// The registered system behind a token.
    function systemOf(uint256 tokenId) public view returns (System memory) {
        _requireRegistered(tokenId);
        return _applications[_applicationOf[tokenId]].system;
    }

    function keyOf(uint256 tokenId) external view returns (DeviceKey memory) {
        _requireRegistered(tokenId);
        return _applications[_applicationOf[tokenId]].system.key;
    }

    /// Whoever reads a system reads all its channels: a bound keeps that affordable for others.
    function _checkChannels(Channel[] calldata channels) private pure {
        if (channels.length == 0) revert NoChannels();
        if (channels.length > MAX_CHANNELS) revert TooManyChannels(channels.length);
        for (uint256 k = 1; k < channels.length; ++k) {
            for (uint256 earlier = 0; earlier < k; ++earlier) {
                if (channels[k].number == channels[earlier].number) revert ChannelTwice(channels[k].number);
            }
        }
    }

    function _setStatus(uint256 tokenId, Status status, string memory reason) private {
        statusOf[tokenId] = status;
        _history[tokenId].push(StatusAt(uint64(block.timestamp), status));
        emit StatusChanged(tokenId, status, reason);
    }

    function _requireRegistered(uint256 tokenId) private view {
        if (_applicationOf[tokenId] == 0) revert NotRegistered(tokenId);
    }
}
