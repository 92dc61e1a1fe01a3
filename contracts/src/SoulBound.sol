// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";

/// An ERC-721 that never changes hands (ERC-5192), and that nobody else may be allowed to move.
abstract contract SoulBound is ERC721 {
    event Locked(uint256 tokenId);

    /// The token belongs to its owner for good; only the DAO can revoke it.
    error TokenIsSoulBound(uint256 tokenId);
    error NoApprovals();

    /// ERC-5192.
    function locked(uint256 tokenId) external view returns (bool) {
        _requireOwned(tokenId);
        return true;
    }

    function approve(address, uint256 tokenId) public pure override {
        revert TokenIsSoulBound(tokenId);
    }

    function setApprovalForAll(address, bool) public pure override {
        revert NoApprovals();
    }

    function supportsInterface(bytes4 interfaceId) public view virtual override returns (bool) {
        return interfaceId == 0xb45a3c0e || super.supportsInterface(interfaceId);
    }

    function _update(address to, uint256 tokenId, address auth) internal virtual override returns (address) {
        address from = _ownerOf(tokenId);
        if (from != address(0) && to != address(0)) revert TokenIsSoulBound(tokenId);
        if (from == address(0)) emit Locked(tokenId);
        return super._update(to, tokenId, auth);
    }
}
