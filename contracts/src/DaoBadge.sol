// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {SoulBound} from "./SoulBound.sol";

/// Membership of the technical DAO: one badge, one vote.
contract DaoBadge is SoulBound, AccessManaged {
    error AlreadyMember(address member);

    uint256 private _lastId;

    constructor(address authority) SoulBound("MaxCoin Technical DAO", "MGDAO") AccessManaged(authority) {}

    function grant(address member) external restricted returns (uint256 tokenId) {
        if (balanceOf(member) != 0) revert AlreadyMember(member);
        tokenId = ++_lastId;
        _mint(member, tokenId);
    }

    function revoke(uint256 tokenId) external restricted {
        _burn(tokenId);
    }
}
