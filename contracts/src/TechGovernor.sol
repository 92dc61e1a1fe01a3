// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {Governor} from "@openzeppelin/contracts/governance/Governor.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {GovernorCountingSimple} from "@openzeppelin/contracts/governance/extensions/GovernorCountingSimple.sol";
import {GovernorSettings} from "@openzeppelin/contracts/governance/extensions/GovernorSettings.sol";
import {GovernorTimelockControl} from "@openzeppelin/contracts/governance/extensions/GovernorTimelockControl.sol";
import {GovernorVotes} from "@openzeppelin/contracts/governance/extensions/GovernorVotes.sol";
import {IVotes} from "@openzeppelin/contracts/governance/utils/IVotes.sol";
import {Bytes} from "@openzeppelin/contracts/utils/Bytes.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {Authority} from "./Authority.sol";
import {Floors} from "./Timelock.sol";

/// What of DaoBadge the governor calls.
interface IBadge is IVotes {
    function seen(address member) external;
}

/// One member, one vote: what more than half of all vote for passes, waits in the timelock, and lapses in two weeks.
abstract contract MajorityGovernor is
    Governor,
    GovernorSettings,
    GovernorCountingSimple,
    GovernorVotes,
    GovernorTimelockControl
{
    uint256 public constant GRACE_SECONDS = 14 days;
    uint256 private constant SUFFIX_BYTES = 52; // "#proposer=0x" and 40 digits

    error TooShort(uint256 seconds_, uint256 floor);

    Authority public immutable authority;
    IBadge public immutable badge;

    constructor(
        string memory name_,
        IVotes votes,
        IBadge badge_,
        TimelockController timelock_,
        Authority authority_,
        uint48 votingDelaySeconds,
        uint32 votingPeriodSeconds
    )
        Governor(name_)
        GovernorSettings(votingDelaySeconds, votingPeriodSeconds, 1)
        GovernorVotes(votes)
        GovernorTimelockControl(timelock_)
    {
        (authority, badge) = (authority_, badge_);
    }

    /// What passed is carried out within the grace, or not at all.
    function state(uint256 id) public view override(Governor, GovernorTimelockControl) returns (ProposalState) {
        ProposalState now_ = super.state(id);
        uint256 since = 0;
        if (now_ == ProposalState.Succeeded) since = proposalDeadline(id);
        if (now_ == ProposalState.Queued) since = proposalEta(id);
        return since != 0 && block.timestamp > since + GRACE_SECONDS ? ProposalState.Expired : now_;
    }

    function proposalNeedsQueuing(
        uint256 id
    ) public view override(Governor, GovernorTimelockControl) returns (bool) {
        return super.proposalNeedsQueuing(id);
    }

    /// The votes that pass a proposal: a strict majority of those there were when its vote began.
    function quorum(uint256 timepoint) public view virtual override returns (uint256) {
        return token().getPastTotalSupply(timepoint) / 2 + 1;
    }

    function proposalThreshold() public view override(Governor, GovernorSettings) returns (uint256) {
        return super.proposalThreshold();
    }

    /// Abstaining does not help a proposal.
    function _quorumReached(uint256 id) internal view override(Governor, GovernorCountingSimple) returns (bool) {
        (, uint256 inFavour, ) = proposalVotes(id);
        return inFavour >= quorum(proposalSnapshot(id));
    }

    /// A description ends in its proposer, so that nobody takes another's proposal and cancels it.
    function _isValidDescriptionForProposer(
        address proposer,
        string memory description
    ) internal pure override returns (bool) {
        bytes memory text = bytes(description);
        if (text.length < SUFFIX_BYTES) return false;
        string memory suffix = string(Bytes.slice(text, text.length - SUFFIX_BYTES));
        return Strings.equal(suffix, string.concat("#proposer=", Strings.toHexString(proposer)));
    }

    /// A proposer cancels while the vote has not begun; the guardian, while its term lasts, until it is carried out.
    function _validateCancel(uint256 id, address caller) internal view override returns (bool) {
        return (caller != address(0) && caller == authority.guardian()) || super._validateCancel(id, caller);
    }

    /// Who votes is there: a badge does not lapse.
    function _castVote(
        uint256 id,
        address account,
        uint8 support,
        string memory reason,
        bytes memory params
    ) internal override returns (uint256) {
        badge.seen(account);
        return super._castVote(id, account, support, reason, params);
    }

    function _setVotingDelay(uint48 delay) internal override {
        if (!Floors.isLocal() && delay < Floors.VOTING_DELAY) revert TooShort(delay, Floors.VOTING_DELAY);
        super._setVotingDelay(delay);
    }

    function _setVotingPeriod(uint32 period) internal override {
        if (!Floors.isLocal() && period < Floors.VOTING_PERIOD) revert TooShort(period, Floors.VOTING_PERIOD);
        super._setVotingPeriod(period);
    }

    function _queueOperations(
        uint256 id,
        address[] memory targets,
        uint256[] memory values,
        bytes[] memory calldatas,
        bytes32 descriptionHash
    ) internal override(Governor, GovernorTimelockControl) returns (uint48) {
        return super._queueOperations(id, targets, values, calldatas, descriptionHash);
    }

    function _executeOperations(
        uint256 id,
        address[] memory targets,
        uint256[] memory values,
        bytes[] memory calldatas,
        bytes32 descriptionHash
    ) internal override(Governor, GovernorTimelockControl) {
        super._executeOperations(id, targets, values, calldatas, descriptionHash);
    }

    function _cancel(
        address[] memory targets,
        uint256[] memory values,
        bytes[] memory calldatas,
        bytes32 descriptionHash
    ) internal override(Governor, GovernorTimelockControl) returns (uint256) {
        return super._cancel(targets, values, calldatas, descriptionHash);
    }

    function _executor() internal view override(Governor, GovernorTimelockControl) returns (address) {
        return super._executor();
    }
}

/// The technical DAO: one badge, one vote.
contract TechGovernor is MajorityGovernor {
    constructor(
        IBadge badge_,
        TimelockController timelock_,
        Authority authority_,
        uint48 votingDelaySeconds,
        uint32 votingPeriodSeconds
    )
        MajorityGovernor(
            "MaxCoin Technical DAO",
            badge_,
            badge_,
            timelock_,
            authority_,
            votingDelaySeconds,
            votingPeriodSeconds
        )
    {}
}
