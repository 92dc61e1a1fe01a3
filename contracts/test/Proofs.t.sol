// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {Authority, Roles} from "../src/Authority.sol";
import {Coin, Deca} from "../src/Coins.sol";
import {DaoBadge} from "../src/DaoBadge.sol";

/// What halmos offers: values that stand for all values.
interface Svm {
    function createAddress(string memory name) external pure returns (address);
    function createCalldata(string memory contractName) external pure returns (bytes memory);
}

interface Vm {
    function prank(address caller) external;
}

/// Proved by halmos for every caller and every call, not tried at random: `make proofs`.
contract Proofs {
    Svm private constant SVM = Svm(0xF3993A62377BCd56AE39D773740A5390411E8BC9);
    Vm private constant VM = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);
    address private constant MEMBER = address(0xA1);
    address private constant MINTER = address(0xB0);

    Authority private _authority;
    DaoBadge private _badge;
    Deca private _deca;

    function setUp() public {
        _authority = new Authority(address(this));
        _badge = new DaoBadge(address(_authority));
        _deca = new Deca(address(_authority));
        bytes4[] memory mint = new bytes4[](1);
        mint[0] = Coin.mint.selector;
        _authority.setTargetFunctionRole(address(_deca), mint, Roles.REWARDS);
        _authority.grantRole(Roles.REWARDS, MINTER, 0);
        _badge.grant(MEMBER);
        VM.prank(MINTER);
        _deca.mint(MEMBER, 1e18);
    }

    /// Nobody but the DAO moves or ends a badge in use, or makes another.
    function check_aBadgeStaysItsOwners() public {
        address caller = _anybodyElse();
        bytes memory data = SVM.createCalldata("DaoBadge");
        VM.prank(caller);
        (bool done, ) = address(_badge).call(data);
        done;
        assert(_badge.ownerOf(1) == MEMBER);
        assert(_badge.balanceOf(MEMBER) == 1);
        assert(_badge.getVotes(MEMBER) == 1);
    }

    /// Nobody without the role makes coins.
    function check_onlyTheRoleMints() public {
        address caller = _anybodyElse();
        bytes memory data = SVM.createCalldata("Deca");
        VM.prank(caller);
        (bool done, ) = address(_deca).call(data);
        done;
        assert(_deca.totalSupply() <= 1e18);
    }

    /// Nobody but the administrator gives or takes a role, changes a function's role, opens, closes or stops anything.
    function check_rolesAreTheAdministrators() public {
        address caller = _anybodyElse();
        bytes memory data = SVM.createCalldata("Authority");
        VM.prank(caller);
        (bool done, ) = address(_authority).call(data);
        done;
        (bool administrator, ) = _authority.hasRole(0, caller);
        (bool minter, ) = _authority.hasRole(Roles.REWARDS, caller);
        (bool still, ) = _authority.hasRole(Roles.REWARDS, MINTER);
        assert(!administrator && !minter && still);
        assert(_authority.getTargetFunctionRole(address(_deca), Coin.mint.selector) == Roles.REWARDS);
        assert(!_authority.isTargetClosed(address(_deca)));
        (bool may, ) = _authority.canCall(MINTER, address(_deca), Coin.mint.selector);
        assert(may);
    }

    function _anybodyElse() private view returns (address caller) {
        caller = SVM.createAddress("caller");
        if (caller == address(this) || caller == MINTER || caller == address(_authority)) caller = address(0xC0);
    }
}
