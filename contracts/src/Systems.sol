// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {Base64} from "@openzeppelin/contracts/utils/Base64.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {DeviceKey} from "./DeviceKeys.sol";

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

/// What systems are, without state: their checks, their digest, and how a wallet shows them.
library Systems {
    uint256 internal constant MAX_CHANNELS = 16;
    uint256 internal constant MAX_URI_BYTES = 512;

    error NoChannels();
    error TooManyChannels(uint256 count);
    error ChannelTwice(uint64 channel);
    error ChannelWithoutPeak(uint64 channel);
    error UriTooLong(uint256 bytes_);
    error EfficiencyOutOfRange(uint256 efficiencyPpm);

    /// Whoever reads a system reads all its channels: a bound keeps that affordable for others.
    function check(System calldata system) internal pure {
        if (system.channels.length == 0) revert NoChannels();
        if (system.channels.length > MAX_CHANNELS) revert TooManyChannels(system.channels.length);
        for (uint256 k = 0; k < system.channels.length; ++k) {
            if (system.channels[k].peakMw == 0) revert ChannelWithoutPeak(system.channels[k].number);
            for (uint256 earlier = 0; earlier < k; ++earlier) {
                if (system.channels[k].number == system.channels[earlier].number) {
                    revert ChannelTwice(system.channels[k].number);
                }
            }
        }
        if (bytes(system.uri).length > MAX_URI_BYTES) revert UriTooLong(bytes(system.uri).length);
        if (system.efficiencyPpm == 0 || system.efficiencyPpm > 1_000_000) {
            revert EfficiencyOutOfRange(system.efficiencyPpm);
        }
    }

    /// SHA-256 of all that an applicant states, which the device signs (P-ID-5).
    function digest(System memory system) internal pure returns (bytes32) {
        bytes memory channels = "";
        for (uint256 k = 0; k < system.channels.length; ++k) {
            Channel memory c = system.channels[k];
            channels = abi.encodePacked(channels, c.number, c.role, c.peakMw, c.errorPpm, c.offsetMw);
        }
        return
            sha256(
                abi.encodePacked(
                    "MGSYS1\x00\x00",
                    uint8(system.kind),
                    system.placed,
                    system.latitudeDeci,
                    system.longitudeDeci,
                    system.efficiencyPpm,
                    system.batteryWh,
                    system.onlineRequired,
                    uint8(system.channels.length),
                    channels,
                    system.uri
                )
            );
    }

    /// ERC-721 metadata as a data URI: no host is needed to show it. Nothing in it was written by the applicant.
    function card(System memory system, uint256 tokenId, Status status) internal pure returns (string memory) {
        string memory kind = system.kind == Kind.Miner ? "Miner" : "Storage node";
        string memory json = string.concat(
            '{"name":"',
            kind,
            " ",
            Strings.toString(tokenId),
            '","description":"A clean energy system of MaxCoin Green Energy","attributes":[',
            _trait("kind", kind),
            ",",
            _trait("status", status == Status.Active ? "active" : status == Status.Suspended ? "suspended" : "revoked"),
            "]}"
        );
        return string.concat("data:application/json;base64,", Base64.encode(bytes(json)));
    }

    function _trait(string memory name, string memory value) private pure returns (string memory) {
        return string.concat('{"trait_type":"', name, '","value":"', value, '"}');
    }
}
