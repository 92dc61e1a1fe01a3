// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {EnergyToken} from "./EnergyToken.sol";

/// Makes the energy token of a storage node: apart from the registry only because of its size (EIP-170).
contract EnergyTokenFactory {
    function make(IAccessManager authority, uint256 node) external returns (EnergyToken) {
        string memory number = Strings.toString(node);
        return
            new EnergyToken(
                authority,
                node,
                string.concat("MaxCoin Energy, node ", number),
                string.concat("MGE", number)
            );
    }
}
