// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {Votes} from "@openzeppelin/contracts/governance/utils/Votes.sol";
import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SoulBound} from "./SoulBound.sol";

/// Membership of the technical DAO: one badge, one vote, which is its owner's own.
///
/// A badge that took part in nothing for half a year may be lapsed by anyone, a month after that was announced, and taken
/// up again by its owner, so that lost keys do not make a majority impossible.
contract DaoBadge is SoulBound, Votes, AccessManaged {
    uint48 public constant LAPSE_SECONDS = 180 days;
    uint48 public constant OBJECTION_SECONDS = 30 days;

    event Seen(uint256 indexed tokenId, uint48 time);
    event LapseAnnounced(uint256 indexed tokenId, uint48 time);
    event Lapsed(uint256 indexed tokenId, address indexed member);
    event TakenUp(uint256 indexed tokenId, address indexed member);

    error AlreadyMember(address member);
    error VotesAreNotDelegated(address member);
    error SeenLately(uint256 tokenId, uint48 time);
    error AnnouncedBefore(uint256 tokenId, uint48 time);
    error NotAnnounced(uint256 tokenId, uint48 time);
    error NotMember(address caller);
    error NotLapsed(address member);

    uint256 private _lastId;
    mapping(address member => uint256 tokenId) private _badgeOf;
    mapping(uint256 tokenId => uint48) public seenAt;
    mapping(uint256 tokenId => uint48) public announcedAt;
    mapping(address member => uint256 tokenId) public lapsedOf;

    constructor(
        address authority
    ) ERC721("MaxCoin Technical DAO", "MGDAO") EIP712("MaxCoin Technical DAO", "1") AccessManaged(authority) {}

    /// The DAO takes a member in.
    function grant(address member) external restricted returns (uint256 tokenId) {
        if (balanceOf(member) != 0 || lapsedOf[member] != 0) revert AlreadyMember(member);
        tokenId = ++_lastId;
        _give(member, tokenId);
    }

    /// End a membership, also a lapsed one.
    function revoke(address member) external restricted {
        uint256 lapsed = lapsedOf[member];
        delete lapsedOf[member];
        if (lapsed == 0) _burn(_badgeOf[member]);
        delete _badgeOf[member];
    }

    /// The governor notes who took part.
    function seen(address member) external restricted {
        if (balanceOf(member) != 0) _note(_badgeOf[member]);
    }

    /// Announce that a badge took part in nothing for half a year; its owner has a month to object.
    function announceLapse(uint256 tokenId) external {
        _requireOwned(tokenId);
        if (block.timestamp < seenAt[tokenId] + LAPSE_SECONDS) revert SeenLately(tokenId, seenAt[tokenId]);
        if (announcedAt[tokenId] > seenAt[tokenId]) revert AnnouncedBefore(tokenId, announcedAt[tokenId]);
        announcedAt[tokenId] = uint48(block.timestamp);
        emit LapseAnnounced(tokenId, uint48(block.timestamp));
    }

    /// A badge whose owner did not object counts no longer, until its owner takes it up.
    function lapse(uint256 tokenId) external {
        address member = _requireOwned(tokenId);
        uint48 announced = announcedAt[tokenId];
        if (announced <= seenAt[tokenId] || block.timestamp < announced + OBJECTION_SECONDS) {
            revert NotAnnounced(tokenId, announced);
        }
        lapsedOf[member] = tokenId;
        _burn(tokenId);
        emit Lapsed(tokenId, member);
    }

    /// A member is there, without a vote to take part in.
    function present() external {
        if (balanceOf(msg.sender) == 0) revert NotMember(msg.sender);
        _note(_badgeOf[msg.sender]);
    }

    /// The owner of a lapsed badge votes again.
    function takeUp() external returns (uint256 tokenId) {
        tokenId = lapsedOf[msg.sender];
        if (tokenId == 0) revert NotLapsed(msg.sender);
        delete lapsedOf[msg.sender];
        _give(msg.sender, tokenId);
        emit TakenUp(tokenId, msg.sender);
    }

    /// Votes are counted by time, so that chains of any block rate behave alike (ERC-6372).
    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    // solhint-disable-next-line func-name-mixedcase
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    function _give(address member, uint256 tokenId) private {
        _badgeOf[member] = tokenId;
        _note(tokenId);
        if (delegates(member) == address(0)) _delegate(member, member);
        _mint(member, tokenId);
    }

    function _note(uint256 tokenId) private {
        seenAt[tokenId] = uint48(block.timestamp);
        emit Seen(tokenId, uint48(block.timestamp));
    }

    function _delegate(address account, address delegatee) internal override {
        if (delegatee != account) revert VotesAreNotDelegated(account);
        super._delegate(account, delegatee);
    }

    function _getVotingUnits(address member) internal view override returns (uint256) {
        return balanceOf(member);
    }

    function _update(address to, uint256 tokenId, address auth) internal override returns (address from) {
        from = super._update(to, tokenId, auth);
        _transferVotingUnits(from, to, 1);
    }
}
