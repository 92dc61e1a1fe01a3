// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManager} from "@openzeppelin/contracts/access/manager/AccessManager.sol";
import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";

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

/// What holds for a function, in one word.
struct Rule {
    uint64 role;
    uint48 stoppedUntil;
    uint32 stoppedInTerm;
    bool stoppable;
}

/// What holds for a contract: whose clone it is, if it is one, and whether all of it is closed.
struct Place {
    address implementation;
    bool closed;
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
    mapping(address target => mapping(bytes4 selector => Rule)) private _rules;
    mapping(address target => Place) private _places;

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
            _rules[target][selectors[k]].stoppable = stoppable;
            emit StoppableSet(target, selectors[k], stoppable);
        }
    }

    /// The guardian stops a function for a week, once in its term.
    function stop(address target, bytes4 selector) external {
        if (msg.sender != guardian() || msg.sender == address(0)) revert NotGuardian(msg.sender);
        Rule storage rule = _rules[target][selector];
        if (!rule.stoppable) revert NotStoppable(target, selector);
        if (rule.stoppedInTerm == term) revert StoppedBefore(target, selector);
        uint48 until = uint48(block.timestamp) + STOP_SECONDS;
        (rule.stoppedInTerm, rule.stoppedUntil) = (term, until);
        emit Stopped(target, selector, until);
    }

    /// The DAO ends a stop before its time.
    function resume(address target, bytes4 selector) external onlyAuthorized {
        _rules[target][selector].stoppedUntil = 0;
        emit Resumed(target, selector);
    }

    /// A clone has the roles, and the stops, of its implementation.
    function setImplementation(address clone, address implementation) external onlyAuthorized {
        _places[clone].implementation = implementation;
    }

    function isStoppable(address target, bytes4 selector) external view returns (bool) {
        return _rules[target][selector].stoppable;
    }

    function stoppedUntil(address target, bytes4 selector) external view returns (uint48) {
        return _rules[target][selector].stoppedUntil;
    }

    function canCall(
        address caller,
        address target,
        bytes4 selector
    ) public view override returns (bool immediate, uint32 delay) {
        if (block.timestamp < _rules[_resolved(target)][selector].stoppedUntil) return (false, 0);
        return super.canCall(caller, target, selector);
    }

    function isTargetClosed(address target) public view override returns (bool) {
        return _places[_resolved(target)].closed;
    }

    function getTargetFunctionRole(address target, bytes4 selector) public view override returns (uint64) {
        return _rules[_resolved(target)][selector].role;
    }

    function _setTargetFunctionRole(address target, bytes4 selector, uint64 roleId) internal override {
        if (selector == IAccessManaged.setAuthority.selector) revert AccessManagerLockedFunction(selector);
        _rules[target][selector].role = roleId;
        emit TargetFunctionRoleUpdated(target, selector, roleId);
    }

    function _setTargetClosed(address target, bool closed) internal override {
        _places[target].closed = closed;
        emit TargetClosed(target, closed);
    }

    function _resolved(address target) private view returns (address) {
        address implementation = _places[target].implementation;
        return implementation == address(0) ? target : implementation;
    }
}
