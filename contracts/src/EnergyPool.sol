// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {Authority} from "./Authority.sol";
import {CarbonToken, Deca, MaxCoin} from "./Coins.sol";
import {MinerRegistry} from "./MinerRegistry.sol";

/// A storage node's liquidity: its energy token, DECA, MaxCoin and CarbonToken exchange at a parity that is fixed for
/// the pool's life, for 0.3 %, which stays with the shares. Values are in wei of an energy token: 1e18 is 1 kWh.
///
/// Reserves are the pool's own counters, so a donation counts for nothing. Everything is rounded against the caller.
contract EnergyPool is ERC20, AccessManaged {
    using SafeERC20 for IERC20;

    uint256 public constant TOKENS = 4;
    uint256 public constant FEE_PPM = 3_000;
    uint256 private constant PPM = 1_000_000;
    uint256 private constant KWH = 1e18;
    /// Shares that belong to nobody: a first depositor cannot make the next one's round to nothing.
    uint256 private constant VIRTUAL_SHARES = 1e3;

    event Deposited(address indexed owner, address indexed token, uint256 amount, uint256 shares);
    event Redeemed(address indexed owner, uint256 shares, uint256[4] amounts);
    event Swapped(
        address indexed by,
        address indexed tokenIn,
        address indexed tokenOut,
        uint256 amountIn,
        uint256 amountOut
    );

    error TooLate(uint256 deadline);
    error NotOfThisPool(address token);
    error SameToken(address token);
    error TooLittle(uint256 amount, uint256 wanted);
    error CapReached(address token, uint256 reserve, uint256 cap);
    error NotEnough(address token, uint256 wanted, uint256 reserve);

    address private immutable _manager;
    uint256 public immutable node;
    IERC20 private immutable _energy;
    IERC20 private immutable _deca;
    IERC20 private immutable _maxCoin;
    IERC20 private immutable _carbon;
    uint256 private immutable _decaPerKwh;
    uint256 private immutable _maxPerKwh;
    uint256 private immutable _carbonPerKwh;

    mapping(address token => uint256) public reserveOf;
    mapping(address token => uint256) public capOf;

    constructor(
        address authority_,
        uint256 node_,
        IERC20[4] memory tokens_,
        uint256[3] memory coinsPerKwh,
        uint256[4] memory caps
    )
        ERC20(
            string.concat("MaxCoin Energy Pool, node ", Strings.toString(node_)),
            string.concat("MGP", Strings.toString(node_))
        )
        AccessManaged(authority_)
    {
        (_manager, node) = (authority_, node_);
        (_energy, _deca, _maxCoin, _carbon) = (tokens_[0], tokens_[1], tokens_[2], tokens_[3]);
        (_decaPerKwh, _maxPerKwh, _carbonPerKwh) = (coinsPerKwh[0], coinsPerKwh[1], coinsPerKwh[2]);
        for (uint256 k = 0; k < TOKENS; ++k) capOf[address(tokens_[k])] = caps[k];
    }

    /// The energy token, DECA, MaxCoin and CarbonToken.
    function tokens() public view returns (IERC20[4] memory) {
        return [_energy, _deca, _maxCoin, _carbon];
    }

    /// What a kWh is worth of a token, wei.
    function perKwh(address token) public view returns (uint256) {
        if (token == address(_energy)) return KWH;
        if (token == address(_deca)) return _decaPerKwh;
        if (token == address(_maxCoin)) return _maxPerKwh;
        if (token == address(_carbon)) return _carbonPerKwh;
        revert NotOfThisPool(token);
    }

    /// Value of all reserves, rounded down.
    function totalValue() public view returns (uint256 value) {
        IERC20[4] memory all = tokens();
        for (uint256 k = 0; k < TOKENS; ++k) {
            value += Math.mulDiv(reserveOf[address(all[k])], KWH, perKwh(address(all[k])));
        }
    }

    /// What shares are worth, rounded down.
    function valueOf(uint256 shares) public view returns (uint256) {
        return Math.mulDiv(shares, totalValue() + 1, totalSupply() + VIRTUAL_SHARES);
    }

    /// What a swap gives, its fee taken; the same as the swap itself would.
    function quote(address tokenIn, uint256 amountIn, address tokenOut) public view returns (uint256) {
        if (tokenIn == tokenOut) revert SameToken(tokenIn);
        return _worth(Math.mulDiv(amountIn, KWH, perKwh(tokenIn)), tokenOut);
    }

    /// Put one of the pool's tokens in, for shares of all of it.
    function deposit(
        address token,
        uint256 amount,
        uint256 minShares,
        uint256 deadline
    ) external restricted returns (uint256 shares) {
        _inTime(deadline);
        uint256 value = Math.mulDiv(amount, KWH, perKwh(token));
        shares = Math.mulDiv(value, totalSupply() + VIRTUAL_SHARES, totalValue() + 1);
        if (shares == 0 || shares < minShares) revert TooLittle(shares, minShares);
        _take(token, amount);
        _mint(msg.sender, shares);
        emit Deposited(msg.sender, token, amount, shares);
    }

    /// Take out a share of each reserve. Nothing stops this.
    function redeem(uint256 shares, uint256[4] calldata minAmounts, uint256 deadline) external {
        _inTime(deadline);
        uint256 supply = totalSupply() + VIRTUAL_SHARES;
        _burn(msg.sender, shares);
        IERC20[4] memory all = tokens();
        uint256[4] memory amounts;
        for (uint256 k = 0; k < TOKENS; ++k) {
            amounts[k] = Math.mulDiv(reserveOf[address(all[k])], shares, supply);
            if (amounts[k] < minAmounts[k]) revert TooLittle(amounts[k], minAmounts[k]);
            _give(address(all[k]), amounts[k]);
        }
        emit Redeemed(msg.sender, shares, amounts);
    }

    /// Take out one token for shares: "request energy tokens", "request MaxCoin". The fee is a swap's.
    function redeemIn(
        address token,
        uint256 shares,
        uint256 minAmount,
        uint256 deadline
    ) external restricted returns (uint256 amount) {
        _inTime(deadline);
        amount = _worth(valueOf(shares), token);
        if (amount == 0 || amount < minAmount) revert TooLittle(amount, minAmount);
        _burn(msg.sender, shares);
        _give(token, amount);
        uint256[4] memory amounts;
        IERC20[4] memory all = tokens();
        for (uint256 k = 0; k < TOKENS; ++k) if (address(all[k]) == token) amounts[k] = amount;
        emit Redeemed(msg.sender, shares, amounts);
    }

    /// Exchange one token for another at the parity, for the fee, which stays with the shares.
    function swap(
        address tokenIn,
        uint256 amountIn,
        address tokenOut,
        uint256 minOut,
        uint256 deadline
    ) external restricted returns (uint256 amountOut) {
        _inTime(deadline);
        amountOut = quote(tokenIn, amountIn, tokenOut);
        if (amountOut == 0 || amountOut < minOut) revert TooLittle(amountOut, minOut);
        _take(tokenIn, amountIn);
        _give(tokenOut, amountOut);
        emit Swapped(msg.sender, tokenIn, tokenOut, amountIn, amountOut);
    }

    /// How much of a value is paid out in a token, the fee taken.
    function _worth(uint256 value, address token) private view returns (uint256) {
        return Math.mulDiv(value - Math.mulDiv(value, FEE_PPM, PPM, Math.Rounding.Ceil), perKwh(token), KWH);
    }

    function _take(address token, uint256 amount) private {
        uint256 reserve = reserveOf[token] + amount;
        if (reserve > capOf[token]) revert CapReached(token, reserve, capOf[token]);
        reserveOf[token] = reserve;
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
    }

    function _give(address token, uint256 amount) private {
        if (amount > reserveOf[token]) revert NotEnough(token, amount, reserveOf[token]);
        reserveOf[token] -= amount;
        IERC20(token).safeTransfer(msg.sender, amount);
    }

    function _inTime(uint256 deadline) private view {
        if (block.timestamp > deadline) revert TooLate(deadline);
    }

    function authority() public view override returns (address) {
        return _manager;
    }
}

/// The pools of all nodes. Another parity is another pool: the newest of a node is `poolOf`, the older ones go on.
contract EnergyPools is AccessManaged {
    event PoolOpened(uint256 indexed node, address indexed pool, uint256[3] coinsPerKwh, uint256[4] caps);

    error NoEnergyToken(uint256 node);
    error NoParity();

    MinerRegistry public immutable registry;
    IERC20 private immutable _deca;
    IERC20 private immutable _maxCoin;
    IERC20 private immutable _carbon;
    mapping(uint256 node => EnergyPool) public poolOf;
    mapping(EnergyPool pool => bool) public isPool;

    constructor(
        address authority,
        MinerRegistry registry_,
        Deca deca,
        MaxCoin maxCoin,
        CarbonToken carbon
    ) AccessManaged(authority) {
        registry = registry_;
        (_deca, _maxCoin, _carbon) = (deca, maxCoin, carbon);
    }

    /// The DAO opens a node's pool: DECA, MaxCoin and CarbonToken per kWh, and the most that it keeps of each token.
    function open(
        uint256 node,
        uint256[3] calldata coinsPerKwh,
        uint256[4] calldata caps
    ) external restricted returns (EnergyPool pool) {
        IERC20 energy = IERC20(address(registry.energyTokenOf(node)));
        if (address(energy) == address(0)) revert NoEnergyToken(node);
        for (uint256 k = 0; k < 3; ++k) if (coinsPerKwh[k] == 0) revert NoParity();
        pool = new EnergyPool(authority(), node, [energy, _deca, _maxCoin, _carbon], coinsPerKwh, caps);
        Authority(authority()).setImplementation(address(pool), address(this));
        (poolOf[node], isPool[pool]) = (pool, true);
        emit PoolOpened(node, address(pool), coinsPerKwh, caps);
    }
}
