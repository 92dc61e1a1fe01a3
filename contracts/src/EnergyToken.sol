// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {Roles} from "./Authority.sol";

/// Energy that one storage node holds and can give back: 1 token = 1 kWh, 18 decimals.
contract EnergyToken is ERC20, ERC20Permit, ERC20Burnable {
    error NotMinter(address caller);

    IAccessManager public immutable authority;
    uint256 public immutable node;

    constructor(
        IAccessManager authority_,
        uint256 node_,
        string memory name,
        string memory symbol
    ) ERC20(name, symbol) ERC20Permit(name) {
        authority = authority_;
        node = node_;
    }

    function mint(address to, uint256 amount) external {
        (bool isMinter, ) = authority.hasRole(Roles.MINTER, msg.sender);
        if (!isMinter) revert NotMinter(msg.sender);
        _mint(to, amount);
    }
}
