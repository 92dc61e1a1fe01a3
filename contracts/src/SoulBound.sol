// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {ERC721Votes} from "@openzeppelin/contracts/token/ERC721/extensions/ERC721Votes.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// An ERC-721 that never changes hands (ERC-5192): one vote per token, given to its owner at once.
abstract contract SoulBound is ERC721Votes {
    event Locked(uint256 tokenId);

    /// The token belongs to its owner for good; only the DAO can revoke it.
    error TokenIsSoulBound(uint256 tokenId);

    constructor(string memory name, string memory symbol) ERC721(name, symbol) EIP712(name, "1") {}

    /// ERC-5192.
    function locked(uint256 tokenId) external view returns (bool) {
        _requireOwned(tokenId);
        return true;
    }

    function supportsInterface(bytes4 interfaceId) public view virtual override returns (bool) {
        return interfaceId == 0xb45a3c0e || super.supportsInterface(interfaceId);
    }

    /// Votes are counted by time, so that chains of any block rate behave alike (ERC-6372).
    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    // solhint-disable-next-line func-name-mixedcase
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    function _update(address to, uint256 tokenId, address auth) internal override returns (address) {
        address from = _ownerOf(tokenId);
        if (from != address(0) && to != address(0)) revert TokenIsSoulBound(tokenId);
        if (from == address(0)) emit Locked(tokenId);
        if (to != address(0) && delegates(to) == address(0)) _delegate(to, to);
        return super._update(to, tokenId, auth);
    }
}
