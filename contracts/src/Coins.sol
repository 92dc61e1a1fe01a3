// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// A coin that is minted on paid energy, by Rewards alone. 18 decimals.
abstract contract Coin is ERC20Permit, ERC20Burnable, AccessManaged {
    constructor(
        string memory name,
        string memory symbol,
        address authority
    ) ERC20(name, symbol) ERC20Permit(name) AccessManaged(authority) {}

    /// Mint what a swept kWh brings.
    function mint(address to, uint256 amount) external restricted {
        _mint(to, amount);
    }
}

contract Deca is Coin {
    constructor(address authority) Coin("DECA", "DECA", authority) {}
}

contract MaxCoin is Coin {
    constructor(address authority) Coin("MaxCoin", "MAX", authority) {}
}

/// What clean energy avoided; burned when somebody consumes that energy.
contract CarbonToken is Coin {
    constructor(address authority) Coin("Carbon Token", "CARBON", authority) {}
}
