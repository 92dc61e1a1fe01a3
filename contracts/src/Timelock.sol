// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/// The shortest times of a DAO: members need time to look. Local chains, which are for trials, have none.
library Floors {
    uint48 internal constant VOTING_DELAY = 1 minutes;
    uint32 internal constant VOTING_PERIOD = 1 hours;
    uint256 internal constant TIMELOCK = 1 hours;

    function isLocal() internal view returns (bool) {
        return block.chainid == 1337 || block.chainid == 31337 || block.chainid == 131277322940537;
    }
}

/// Every action of a DAO waits here, in the open, before it is carried out; the technical DAO's stores its funds.
contract Timelock is TimelockController {
    constructor(
        uint256 minDelay,
        address[] memory proposers,
        address[] memory executors,
        address admin
    ) TimelockController(minDelay, proposers, executors, admin) {}

    /// Not even a vote makes it shorter than the floor.
    function getMinDelay() public view override returns (uint256) {
        return Floors.isLocal() ? super.getMinDelay() : Math.max(super.getMinDelay(), Floors.TIMELOCK);
    }
}
