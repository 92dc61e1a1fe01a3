// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManager} from "@openzeppelin/contracts/access/manager/AccessManager.sol";

/// Roles that are granted beside the administrator, who after deployment is the DAO's timelock alone.
library Roles {
    /// Opens lines and requests payment orders: the settlement service.
    uint64 internal constant OPERATOR = 1;
    /// Mints energy tokens: EnergySettlement alone.
    uint64 internal constant MINTER = 2;
}

/// Who may call what. A restricted function without a role of its own belongs to the administrator.
contract Authority is AccessManager {
    constructor(address initialAdmin) AccessManager(initialAdmin) {}
}
