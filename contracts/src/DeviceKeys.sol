// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {P256} from "@openzeppelin/contracts/utils/cryptography/P256.sol";

/// A P-256 public key, as a device's SubjectPublicKeyInfo holds it.
struct DeviceKey {
    bytes32 x;
    bytes32 y;
}

/// A channel's register at one instant, signed by its device (P-ATT-1): unix seconds, mW·s.
struct Attestation {
    uint64 time;
    uint64 register;
    uint64 seq;
    bytes32 r;
    bytes32 s;
}

/// The signed messages of docs/protocol.md that contracts check.
library DeviceKeys {
    /// DER of a SubjectPublicKeyInfo of P-256 up to the point: named curve, uncompressed (P-ID-2).
    bytes internal constant SPKI_PREFIX = hex"3059301306072a8648ce3d020106082a8648ce3d03010703420004";

    /// P-ID-2: the first 16 bytes of SHA-256 of the SubjectPublicKeyInfo.
    function deviceId(DeviceKey memory key) internal pure returns (bytes16) {
        return bytes16(sha256(abi.encodePacked(SPKI_PREFIX, key.x, key.y)));
    }

    /// P-ID-5: who holds the key applies for this owner with exactly this content.
    function provesPossession(
        DeviceKey memory key,
        bytes32 networkDigest,
        address owner,
        uint64 nonce,
        bytes32 content,
        bytes32 r,
        bytes32 s
    ) internal view returns (bool) {
        bytes memory message = abi.encodePacked("MGPOP2\x00\x00", networkDigest, deviceId(key), owner, nonce, content);
        return P256.verify(sha256(message), r, s, key.x, key.y);
    }

    /// P-ID-6: the old key gives its place to a new one.
    function handsOver(
        DeviceKey memory key,
        bytes32 networkDigest,
        bytes16 newDevice,
        bytes32 r,
        bytes32 s
    ) internal view returns (bool) {
        bytes memory message = abi.encodePacked("MGROT1\x00\x00", networkDigest, deviceId(key), newDevice);
        return P256.verify(sha256(message), r, s, key.x, key.y);
    }

    /// P-ATT-1: the device read this register of this channel.
    function attests(
        DeviceKey memory key,
        bytes32 networkDigest,
        uint64 channel,
        Attestation calldata reading
    ) internal view returns (bool) {
        bytes memory message = abi.encodePacked(
            "MGATT1\x00\x00",
            networkDigest,
            deviceId(key),
            channel,
            reading.time,
            reading.register,
            reading.seq
        );
        return P256.verify(sha256(message), reading.r, reading.s, key.x, key.y);
    }
}
