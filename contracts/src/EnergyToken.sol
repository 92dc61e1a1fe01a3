// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";

/// Energy that one storage node holds and can give back: 1 token = 1 kWh, 18 decimals.
///
/// Each node has a clone; `MinerRegistry.energyTokenOf` says which is real. A clone has no storage of the constructor,
/// so the authority is in the code, the node's token in the clone's arguments, and the name the same for all (EIP-712).
contract EnergyToken is ERC20Permit, AccessManaged {
    string private constant NAME = "MaxCoin Energy";

    /// Only a clone is a token; the implementation is not.
    error NoClone();

    address private immutable _implementation;
    address private immutable _manager;

    constructor(address authority_) ERC20("", "") ERC20Permit(NAME) AccessManaged(authority_) {
        _implementation = address(this);
        _manager = authority_;
    }

    function authority() public view override returns (address) {
        return _manager;
    }

    function setAuthority(address) public pure override {
        revert AccessManagedUnauthorized(address(0));
    }

    /// The storage node's token in the registry.
    function node() public view returns (uint256) {
        if (address(this) == _implementation) revert NoClone();
        return abi.decode(Clones.fetchCloneArgs(address(this)), (uint256));
    }

    function name() public pure override returns (string memory) {
        return NAME;
    }

    function symbol() public view override returns (string memory) {
        return string.concat("MGE", Strings.toString(node()));
    }

    /// Mint a payment: its miner's and its node's part.
    function mint(address miner, uint256 toMiner, address node_, uint256 toNode) external restricted {
        _mint(miner, toMiner);
        if (toNode != 0) _mint(node_, toNode);
    }

    /// Burn what the caller holds: energy that was delivered.
    function burn(uint256 amount) external restricted {
        _burn(msg.sender, amount);
    }
}
