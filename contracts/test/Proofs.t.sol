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
    function check_rolesAreTheAdministrators(
        uint8 which,
        address one,
        address other,
        bytes4 selector,
        uint64 role,
        uint32 delay,
        bool flag
    ) public {
        bytes4[] memory selectors = new bytes4[](1);
        selectors[0] = selector;
        bytes memory data;
        if (which == 0) data = abi.encodeCall(_authority.grantRole, (role, one, delay));
        else if (which == 1) data = abi.encodeCall(_authority.revokeRole, (role, one));
        else if (which == 2) data = abi.encodeCall(_authority.renounceRole, (role, one));
        else if (which == 3) data = abi.encodeCall(_authority.setRoleAdmin, (role, uint64(delay)));
        else if (which == 4) data = abi.encodeCall(_authority.setRoleGuardian, (role, uint64(delay)));
        else if (which == 5) data = abi.encodeCall(_authority.setGrantDelay, (role, delay));
        else if (which == 6) data = abi.encodeCall(_authority.setTargetAdminDelay, (one, delay));
        else if (which == 7) data = abi.encodeCall(_authority.setTargetFunctionRole, (one, selectors, role));
        else if (which == 8) data = abi.encodeCall(_authority.setTargetClosed, (one, flag));
        else if (which == 9) data = abi.encodeCall(_authority.updateAuthority, (one, other));
        else if (which == 10) data = abi.encodeCall(_authority.setGuardian, (one, uint48(delay)));
        else if (which == 11) data = abi.encodeCall(_authority.setStoppable, (one, selectors, flag));
        else if (which == 12) data = abi.encodeCall(_authority.stop, (one, selector));
        else if (which == 13) data = abi.encodeCall(_authority.resume, (one, selector));
        else data = abi.encodeCall(_authority.setImplementation, (one, other));
        address caller = _anybodyElse();
        VM.prank(caller);
        (bool done, ) = address(_authority).call(data);
        done;
        (bool administrator, ) = _authority.hasRole(0, caller);
        (bool minter, ) = _authority.hasRole(Roles.REWARDS, caller);
        (bool still, ) = _authority.hasRole(Roles.REWARDS, MINTER);
        assert(!administrator && !minter && still);
        assert(_authority.getTargetFunctionRole(address(_deca), Coin.mint.selector) == Roles.REWARDS);
        (bool may, ) = _authority.canCall(MINTER, address(_deca), Coin.mint.selector);
        assert(may);
    }

    /// Address 0 sends no transaction.
    function _anybodyElse() private view returns (address caller) {
        caller = SVM.createAddress("caller");
        if (caller == address(0) || caller == address(this) || caller == address(_authority)) caller = address(0xC0);
        if (caller == MINTER || caller == MEMBER) caller = address(0xC0);
    }
}
