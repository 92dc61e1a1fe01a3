// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {CarbonToken, Coin, Deca, MaxCoin} from "./Coins.sol";
import {LineBook} from "./LineBook.sol";

/// Coins for each kWh of energy tokens that were minted, to the vault; in one sweep, so that claims stay cheap.
contract Rewards is AccessManaged {
    uint256 private constant KWH = 1e18;

    event Swept(uint256 energy, uint256 deca, uint256 maxCoin, uint256 carbon);
    event RatesChanged(uint256 decaPerKwh, uint256 maxPerKwh, uint256 carbonPerKwh);

    error RateTooHigh(uint256 rate);

    uint256 public constant HIGHEST_RATE = 1_000e18;
    LineBook public immutable book;
    Deca public immutable deca;
    MaxCoin public immutable maxCoin;
    CarbonToken public immutable carbon;
    address public immutable vault;

    uint256 public decaPerKwh = 1e18;
    uint256 public maxPerKwh = 1e18;
    uint256 public carbonPerKwh = 1e18;
    uint256 public swept; // of the book's totalMinted

    constructor(
        address authority,
        LineBook book_,
        Deca deca_,
        MaxCoin maxCoin_,
        CarbonToken carbon_,
        address vault_
    ) AccessManaged(authority) {
        (book, deca, maxCoin, carbon, vault) = (book_, deca_, maxCoin_, carbon_, vault_);
    }

    /// Mint what is due to the vault. Anyone may.
    function sweep() external restricted {
        _sweep();
    }

    /// The DAO sets what a kWh brings from now on; what was paid before is minted at the rates of before.
    function setRates(uint256 decaPerKwh_, uint256 maxPerKwh_, uint256 carbonPerKwh_) external restricted {
        _sweep();
        _check(decaPerKwh_);
        _check(maxPerKwh_);
        _check(carbonPerKwh_);
        (decaPerKwh, maxPerKwh, carbonPerKwh) = (decaPerKwh_, maxPerKwh_, carbonPerKwh_);
        emit RatesChanged(decaPerKwh_, maxPerKwh_, carbonPerKwh_);
    }

    function _sweep() private {
        uint256 total = book.totalMinted();
        uint256 energy = total - swept;
        swept = total;
        if (energy == 0) return;
        emit Swept(
            energy,
            _mint(deca, energy, decaPerKwh),
            _mint(maxCoin, energy, maxPerKwh),
            _mint(carbon, energy, carbonPerKwh)
        );
    }

    function _mint(Coin coin, uint256 energy, uint256 rate) private returns (uint256 amount) {
        amount = (energy * rate) / KWH;
        coin.mint(vault, amount);
    }

    function _check(uint256 rate) private pure {
        if (rate > HIGHEST_RATE) revert RateTooHigh(rate);
    }
}
