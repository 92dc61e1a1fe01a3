// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManager} from "@openzeppelin/contracts/access/manager/AccessManager.sol";

/// Roles that are granted beside the administrator, who after deployment is the DAO's timelock alone.
library Roles {
    /// Posts and withdraws orders, and keeps what the registry says of hardware and mining pool: the operator.
    uint64 internal constant OPERATOR = 1;
    /// Mints energy tokens, writes the line book, suspends for fraud: EnergySettlement.
    uint64 internal constant SETTLEMENT = 2;
    /// Burns energy tokens that were delivered: EnergyExchange.
    uint64 internal constant EXCHANGE = 3;
    /// Registers energy tokens and pools with their implementation: MinerRegistry, EnergyPools.
    uint64 internal constant REGISTRY = 4;
    /// Notes who took part in a vote: TechGovernor.
    uint64 internal constant GOVERNOR = 5;
    /// Mints DECA, MaxCoin and CarbonToken on paid energy: Rewards.
    uint64 internal constant REWARDS = 6;
    /// Sets versions of modules: the timelock of the module vote.
    uint64 internal constant MODULES = 7;
}

/// Who may call what. A restricted function without a role of its own belongs to the administrator.
///
/// A guardian may stop single functions for a week, each once in its term, so that the DAO has time to decide; it can
/// do nothing else, and its own term ends. What is stopped stays stopped for the DAO too, what is not goes on.
contract Authority is AccessManager {
    uint48 public constant STOP_SECONDS = 7 days;
    uint48 public constant LONGEST_TERM = 366 days;

    event GuardianSet(address indexed guardian, uint48 until);
    event StoppableSet(address indexed target, bytes4 indexed selector, bool stoppable);
    event Stopped(address indexed target, bytes4 indexed selector, uint48 until);
    event Resumed(address indexed target, bytes4 indexed selector);

    error NotGuardian(address caller);
    error NotStoppable(address target, bytes4 selector);
    error StoppedBefore(address target, bytes4 selector);
    error TermTooLong(uint48 until);

    address private _guardian;
    uint48 public guardianUntil;
    uint32 public term;
    mapping(address target => mapping(bytes4 selector => bool)) public isStoppable;
    mapping(address target => mapping(bytes4 selector => uint48)) public stoppedUntil;
    mapping(address target => mapping(bytes4 selector => uint32)) private _stoppedInTerm;
    mapping(address clone => address) private _implementationOf;

    constructor(address initialAdmin) AccessManager(initialAdmin) {}

    /// The guardian, or zero when there is none or its term is over.
    function guardian() public view returns (address) {
        return block.timestamp < guardianUntil ? _guardian : address(0);
    }

    /// The DAO appoints a guardian until a time, or none; a new term begins.
    function setGuardian(address guardian_, uint48 until) external onlyAuthorized {
        if (until > block.timestamp + LONGEST_TERM) revert TermTooLong(until);
        _guardian = guardian_;
        guardianUntil = until;
        ++term;
        emit GuardianSet(guardian_, until);
    }

    /// The DAO says which functions the guardian may stop.
    function setStoppable(address target, bytes4[] calldata selectors, bool stoppable) external onlyAuthorized {
        for (uint256 k = 0; k < selectors.length; ++k) {
            isStoppable[target][selectors[k]] = stoppable;
            emit StoppableSet(target, selectors[k], stoppable);
        }
    }

    /// The guardian stops a function for a week, once in its term.
    function stop(address target, bytes4 selector) external {
        if (msg.sender != guardian() || msg.sender == address(0)) revert NotGuardian(msg.sender);
        if (!isStoppable[target][selector]) revert NotStoppable(target, selector);
        if (_stoppedInTerm[target][selector] == term) revert StoppedBefore(target, selector);
        _stoppedInTerm[target][selector] = term;
        stoppedUntil[target][selector] = uint48(block.timestamp) + STOP_SECONDS;
        emit Stopped(target, selector, stoppedUntil[target][selector]);
    }

    /// The DAO ends a stop before its time.
    function resume(address target, bytes4 selector) external onlyAuthorized {
        stoppedUntil[target][selector] = 0;
        emit Resumed(target, selector);
    }

    /// A clone has the roles, and the stops, of its implementation.
    function setImplementation(address clone, address implementation) external onlyAuthorized {
        _implementationOf[clone] = implementation;
    }

    function canCall(
        address caller,
        address target,
        bytes4 selector
    ) public view override returns (bool immediate, uint32 delay) {
        if (block.timestamp < stoppedUntil[_resolved(target)][selector]) return (false, 0);
        return super.canCall(caller, target, selector);
    }

    function isTargetClosed(address target) public view override returns (bool) {
        return super.isTargetClosed(_resolved(target));
    }

    function getTargetFunctionRole(address target, bytes4 selector) public view override returns (uint64) {
        return super.getTargetFunctionRole(_resolved(target), selector);
    }

    function _resolved(address target) private view returns (address) {
        address implementation = _implementationOf[target];
        return implementation == address(0) ? target : implementation;
    }
}
