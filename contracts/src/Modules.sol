// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {Votes} from "@openzeppelin/contracts/governance/utils/Votes.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Authority} from "./Authority.sol";
import {DaoBadge} from "./DaoBadge.sol";
import {MinerRegistry} from "./MinerRegistry.sol";
import {IBadge, MajorityGovernor} from "./TechGovernor.sol";
import {Timelock} from "./Timelock.sol";

/// Who votes on modules: members of the technical DAO and owners of active systems, one vote each.
///
/// Being active is not checkpointed where it is kept, so everybody's vote is taken here when anyone refreshes it.
contract Electorate is Votes {
    event Refreshed(address indexed elector, bool votes);

    error VotesAreNotDelegated(address member);

    DaoBadge public immutable badge;
    MinerRegistry public immutable registry;
    mapping(address elector => bool) public isElector;

    /// The first members have their vote from the beginning.
    constructor(
        DaoBadge badge_,
        MinerRegistry registry_,
        address[] memory members
    ) EIP712("MaxCoin Electorate", "1") {
        (badge, registry) = (badge_, registry_);
        for (uint256 k = 0; k < members.length; ++k) _refresh(members[k], badge_.balanceOf(members[k]) != 0);
    }

    /// Give an account its vote, or take it, as it is now. Anyone may.
    function refresh(address elector) external {
        _refresh(elector, badge.balanceOf(elector) != 0 || registry.activeSystems(elector) != 0);
    }

    function _refresh(address elector, bool votes) private {
        if (votes == isElector[elector]) return;
        if (delegates(elector) == address(0)) super._delegate(elector, elector); // while it has no vote to move
        isElector[elector] = votes;
        if (votes) _transferVotingUnits(address(0), elector, 1);
        else _transferVotingUnits(elector, address(0), 1);
        emit Refreshed(elector, votes);
    }

    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    // solhint-disable-next-line func-name-mixedcase
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    function _delegate(address elector, address) internal pure override {
        revert VotesAreNotDelegated(elector);
    }

    function _getVotingUnits(address elector) internal view override returns (uint256) {
        return isElector[elector] ? 1 : 0;
    }
}

/// The vote on module updates, with a timelock of its own, so that it can set versions and nothing else. However few took
/// their vote, as many as more than half of all badges must be in favour.
contract ModuleGovernor is MajorityGovernor {
    constructor(
        Electorate electorate,
        TimelockController timelock_,
        Authority authority_,
        uint48 votingDelaySeconds,
        uint32 votingPeriodSeconds
    )
        MajorityGovernor(
            "MaxCoin Modules",
            electorate,
            IBadge(address(electorate.badge())),
            timelock_,
            authority_,
            votingDelaySeconds,
            votingPeriodSeconds
        )
    {}

    function quorum(uint256 timepoint) public view override returns (uint256) {
        return Math.max(super.quorum(timepoint), badge.getPastTotalSupply(timepoint) / 2 + 1);
    }
}

contract ModuleTimelock is Timelock {
    constructor(
        uint256 minDelay,
        address[] memory proposers,
        address[] memory executors,
        address admin
    ) Timelock(minDelay, proposers, executors, admin) {}
}

/// What agents and auditors pin: software releases, limits, the backend's keys, versions of checks, by their digest.
contract ModuleRegistry is AccessManaged {
    uint256 private constant MAX_BYTES = 512;

    struct Module {
        string version;
        bytes32 digest; // SHA-256 of what is at the URI
        string uri;
        uint64 since;
    }

    event ModuleSet(string indexed nameHash, string name, string version, bytes32 digest, string uri);

    error TextTooLong(uint256 bytes_);
    error NoName();

    mapping(string name => Module[]) private _history;
    string[] private _names;

    constructor(address authority) AccessManaged(authority) {}

    /// A version and its digest are the ones to run from now on.
    function set(
        string calldata name,
        string calldata version,
        bytes32 digest,
        string calldata uri
    ) external restricted {
        uint256 length = bytes(name).length + bytes(version).length + bytes(uri).length;
        if (length > MAX_BYTES) revert TextTooLong(length);
        if (bytes(name).length == 0) revert NoName();
        if (_history[name].length == 0) _names.push(name);
        _history[name].push(Module(version, digest, uri, uint64(block.timestamp)));
        emit ModuleSet(name, name, version, digest, uri);
    }

    function names() external view returns (string[] memory) {
        return _names;
    }

    /// Every version, oldest first; the last one is in force.
    function historyOf(string calldata name) external view returns (Module[] memory) {
        return _history[name];
    }
}
