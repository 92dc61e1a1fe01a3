// SPDX-License-Identifier: GPL-3.0-or-later
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Authority, Roles} from "../src/Authority.sol";
import {CarbonToken, Deca, MaxCoin} from "../src/Coins.sol";
import {Attestation, DeviceKey, DeviceKeys} from "../src/DeviceKeys.sol";
import {EnergyExchange, RequestStatus, TakeOut} from "../src/EnergyExchange.sol";
import {EnergyPool, EnergyPools} from "../src/EnergyPool.sol";
import {Claim, EnergySettlement, Exclusion, Posting} from "../src/EnergySettlement.sol";
import {EnergyToken} from "../src/EnergyToken.sol";
import {Ends, Line, LineBook, Loss} from "../src/LineBook.sol";
import {MinerRegistry} from "../src/MinerRegistry.sol";
import {Rewards} from "../src/Rewards.sol";
import {Channel, Kind, Status, System, Systems} from "../src/Systems.sol";

/// What forge offers to tests.
interface Vm {
    function prank(address caller) external;
    function warp(uint256 time) external;
    function signP256(uint256 secret, bytes32 digest) external pure returns (bytes32 r, bytes32 s);
    function publicKeyP256(uint256 secret) external pure returns (uint256 x, uint256 y);
}

/// Acts at random as everybody: meters that lie, an operator and a DAO that post and approve whatever they are given,
/// owners, a node, strangers. It has the administrator's role; what a call refuses is refused.
contract Handler {
    Vm private constant VM = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);
    uint256 private constant N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551;
    uint256 private constant MINER_SECRET = 11;
    uint256 private constant NODE_SECRET = 12;
    uint64 private constant PEAK_MW = 100_000;
    address public constant MINER = address(0xA1);
    address public constant NODE = address(0xB0);
    address public constant STRANGER = address(0xC0);
    address public constant BYSTANDER = address(0xD0);

    Authority public authority;
    MinerRegistry public registry;
    LineBook public book;
    EnergySettlement public settlement;
    EnergyToken public energy;
    EnergyPool public pool;
    EnergyExchange public exchange;
    CarbonToken public carbon;
    Rewards public rewards;
    bytes32 public line;
    Claim[] private _claims;

    uint64 public sentRegister;
    uint64 public receivedRegister;
    uint64 private _delivered;
    uint64 private _taken;
    uint64 private _seq;
    uint256 public highestTotal;
    bool public shareFell; // what a bystander's shares are worth, by another's act

    function build() external {
        require(address(authority) == address(0), "built once");
        VM.warp(1_767_225_600);
        authority = new Authority(address(this));
        registry = new MinerRegistry(address(authority), new EnergyToken(address(authority)));
        book = new LineBook(address(authority), registry);
        settlement = new EnergySettlement(address(authority), registry, book);
        Deca deca = new Deca(address(authority));
        MaxCoin maxCoin = new MaxCoin(address(authority));
        carbon = new CarbonToken(address(authority));
        rewards = new Rewards(address(authority), book, deca, maxCoin, carbon, MINER);
        EnergyPools pools = new EnergyPools(address(authority), registry, deca, maxCoin, carbon);
        exchange = new EnergyExchange(address(authority), registry, carbon);
        _roles(pools);
        _enrol(MINER, MINER_SECRET, Kind.Miner);
        _enrol(NODE, NODE_SECRET, Kind.StorageNode);
        energy = registry.energyTokenOf(2);
        pool = pools.open(2, [uint256(1e18), 2e18, 3e18], [uint256(1e30), 1e30, 1e30, 1e30]);
        exchange.setCarbon(5e17);
        line = book.approveLine(Ends(1, 1, 2, 0, 0), Loss(1000, 0, 100_000));
        VM.warp(block.timestamp + 10);
        settlement.openLine(line, _attest(MINER_SECRET, 1, 0), _attest(NODE_SECRET, 0, 0));
    }

    // time and meters

    function passTime(uint32 seconds_) external {
        VM.warp(block.timestamp + (seconds_ % 10 days) + 1);
    }

    /// What the meters can have measured in a time; the node's may say anything within it.
    function measure(uint32 seconds_, uint64 sent, uint64 received) public {
        uint64 lasted = (seconds_ % 10 days) + 1;
        VM.warp(block.timestamp + lasted);
        sentRegister += sent % (PEAK_MW * lasted);
        receivedRegister += received % (PEAK_MW * lasted);
    }

    /// More than the panel can have made.
    function lie(uint64 sent, uint64 received, uint8 seldom) external {
        if (seldom % 16 != 0) return;
        sentRegister += sent % 1e12;
        receivedRegister += received % 1e12;
    }

    /// A month goes well.
    function month(uint32 seconds_, uint64 sent, uint64 received) external {
        measure(seconds_, sent, received);
        this.postAndApprove(0, true);
        this.claimLast();
        rewards.sweep();
    }

    // orders: whatever the operator may post, the DAO approves

    function postAndApprove(uint64 asked, bool honest) external {
        uint64 least = sentRegister < receivedRegister ? sentRegister : receivedRegister;
        uint256 payable_ = honest ? least : asked;
        Claim memory c = Claim(
            line,
            payable_,
            bytes32(uint256(1)),
            new bytes32[](0),
            _attest(MINER_SECRET, 1, sentRegister),
            _attest(NODE_SECRET, 0, receivedRegister)
        );
        VM.warp(block.timestamp + 1);
        uint64 until = uint64(block.timestamp);
        bytes32 root = keccak256(
            bytes.concat(
                keccak256(
                    abi.encode(
                        until,
                        line,
                        uint256(c.sent.register),
                        uint256(c.received.register),
                        payable_,
                        c.manifest,
                        c.sent.time,
                        c.received.time
                    )
                )
            )
        );
        Posting memory posting = Posting(until, root, 1, uint128(payable_), bytes32(0), "");
        uint256 id = settlement.post(posting);
        settlement.approve(id, posting, new Exclusion[](0));
        if (payable_ > highestTotal) highestTotal = payable_;
        _claims.push(c);
    }

    function claim(uint8 which) external {
        VM.prank(STRANGER);
        settlement.claim(_claims[which % _claims.length]);
    }

    function claimLast() external {
        settlement.claim(_claims[_claims.length - 1]);
    }

    function collect() external {
        settlement.collect(line);
    }

    function suspendAndReinstate(bool miner, uint8 seldom) external {
        registry.setStatus(miner ? 1 : 2, seldom % 8 == 0 ? Status.Suspended : Status.Active, "");
    }

    function forfeit(uint8 seldom) external {
        if (seldom % 16 == 0) settlement.forfeit(line);
    }

    // pool

    /// A bystander's shares lose no more than the rounding of four reserves, and of itself, by an act of others.
    modifier sharesKept() {
        uint256 before = pool.valueOf(pool.balanceOf(BYSTANDER));
        _;
        if (pool.valueOf(pool.balanceOf(BYSTANDER)) + 8 < before) shareFell = true;
    }

    /// The bystander deposits what a node gives it, and acts no more.
    function standBy() external {
        uint256 held = energy.balanceOf(NODE);
        if (held == 0 || pool.balanceOf(BYSTANDER) != 0) return;
        VM.prank(NODE);
        energy.transfer(BYSTANDER, held);
        VM.prank(BYSTANDER);
        energy.approve(address(pool), held);
        VM.prank(BYSTANDER);
        pool.deposit(address(energy), held, 0, type(uint256).max);
    }

    function deposit(uint128 amount, uint8 token) external sharesKept {
        IERC20 chosen = pool.tokens()[token % 4];
        uint256 held = chosen.balanceOf(MINER);
        VM.prank(MINER);
        chosen.approve(address(pool), type(uint256).max);
        VM.prank(MINER);
        pool.deposit(address(chosen), (amount % (held + 1)), 0, type(uint256).max);
    }

    function swap(uint128 amount, uint8 tokenIn, uint8 tokenOut) external sharesKept {
        IERC20 chosen = pool.tokens()[tokenIn % 4];
        uint256 held = chosen.balanceOf(MINER);
        VM.prank(MINER);
        chosen.approve(address(pool), type(uint256).max);
        address out = address(pool.tokens()[tokenOut % 4]);
        VM.prank(MINER);
        pool.swap(address(chosen), (amount % (held + 1)), out, 0, type(uint256).max);
    }

    function redeem(uint128 shares, bool one, uint8 token) external sharesKept {
        uint256 count = shares % (pool.balanceOf(MINER) + 1);
        uint256[4] memory least;
        address out = address(pool.tokens()[token % 4]);
        VM.prank(MINER);
        if (one) pool.redeemIn(out, count, 0, type(uint256).max);
        else pool.redeem(count, least, type(uint256).max);
    }

    function donate(uint128 amount) external sharesKept {
        uint256 held = energy.balanceOf(NODE);
        VM.prank(NODE);
        energy.transfer(address(pool), amount % (held + 1));
    }

    function sweep() external {
        rewards.sweep();
    }

    // take-outs

    function requestTakeOut(uint128 amount) external {
        VM.prank(MINER);
        energy.approve(address(exchange), type(uint256).max);
        VM.prank(MINER);
        carbon.approve(address(exchange), type(uint256).max);
        uint256 held = energy.balanceOf(MINER);
        VM.prank(MINER);
        exchange.requestTakeOut(1, 2, 2, uint128(amount % (held + 1)), uint64(block.timestamp + 1 days));
    }

    function accept() external {
        Attestation memory node = _attest(NODE_SECRET, 3, _delivered);
        Attestation memory buyer = _attest(MINER_SECRET, 2, _taken);
        uint256 id = exchange.takeOuts();
        VM.prank(NODE);
        exchange.accept(id, 3, node, buyer);
    }

    function decline(bool byNode) external {
        uint256 id = exchange.takeOuts();
        VM.prank(byNode ? NODE : MINER);
        exchange.decline(id);
    }

    function deliver(uint64 given, uint64 taken) external {
        _delivered += given % 1e10;
        _taken += taken % 1e10;
    }

    function finish() external {
        Attestation memory node = _attest(NODE_SECRET, 3, _delivered);
        uint256 id = exchange.takeOuts();
        VM.prank(NODE);
        exchange.finish(id, node);
    }

    function confirm() external {
        exchange.confirm(exchange.takeOuts(), _attest(MINER_SECRET, 2, _taken));
    }

    function settle() external {
        exchange.settle(exchange.takeOuts());
    }

    /// A take-out that goes as far as `how` says.
    function takeOut(uint128 amount, uint64 given, uint64 taken, uint8 how) external {
        this.requestTakeOut(amount);
        if (how % 8 == 0) return;
        this.accept();
        VM.warp(block.timestamp + 1 days);
        _delivered += given % uint64(PEAK_MW * 1 days);
        _taken += taken % uint64(PEAK_MW * 1 days);
        if (how % 8 == 1) return;
        if (how % 8 != 2) this.finish();
        if (how % 8 == 3) VM.warp(block.timestamp + 15 days);
        if (how % 8 == 2) VM.warp(block.timestamp + 22 days);
        if (how % 8 <= 3) this.settle();
        else this.confirm();
    }

    function decide(uint64 amount) external {
        exchange.decide(exchange.takeOuts(), amount);
    }

    function withdraw(bool coin) external {
        VM.prank(MINER);
        exchange.withdraw(coin ? IERC20(carbon) : IERC20(energy));
    }

    // what nobody may

    function steal(uint8 how) external {
        VM.prank(STRANGER);
        if (how % 6 == 0) energy.mint(STRANGER, 1e18, STRANGER, 0);
        else if (how % 6 == 1) book.pay(line, 1, 1e18);
        else if (how % 6 == 2) carbon.mint(STRANGER, 1e18);
        else if (how % 6 == 3) registry.transferFrom(MINER, STRANGER, 1);
        else if (how % 6 == 4) registry.setStatus(1, Status.Revoked, "");
        else authority.grantRole(0, STRANGER, 0);
    }

    function _roles(EnergyPools pools) private {
        authority.grantRole(Roles.OPERATOR, address(this), 0);
        authority.grantRole(Roles.SETTLEMENT, address(settlement), 0);
        authority.grantRole(Roles.EXCHANGE, address(exchange), 0);
        authority.grantRole(Roles.REGISTRY, address(registry), 0);
        authority.grantRole(Roles.REGISTRY, address(pools), 0);
        authority.grantRole(Roles.REWARDS, address(rewards), 0);
        book.setWriter(address(settlement));
        address code = address(registry.energyTokenCode());
        _allow(address(authority), Authority.setImplementation.selector, Roles.REGISTRY);
        _allow(code, EnergyToken.mint.selector, Roles.SETTLEMENT);
        _allow(code, EnergyToken.burn.selector, Roles.EXCHANGE);
        _allow(address(registry), MinerRegistry.suspendForFraud.selector, Roles.SETTLEMENT);
        _allow(address(registry), MinerRegistry.recordConsumption.selector, Roles.EXCHANGE);
        _allow(address(settlement), EnergySettlement.post.selector, Roles.OPERATOR);
        _allow(address(rewards.deca()), bytes4(keccak256("mint(address,uint256)")), Roles.REWARDS);
        _allow(address(rewards.maxCoin()), bytes4(keccak256("mint(address,uint256)")), Roles.REWARDS);
        _allow(address(carbon), bytes4(keccak256("mint(address,uint256)")), Roles.REWARDS);
        uint64 everybody = authority.PUBLIC_ROLE();
        _allow(address(settlement), EnergySettlement.claim.selector, everybody);
        _allow(address(settlement), EnergySettlement.collect.selector, everybody);
        _allow(address(settlement), EnergySettlement.openLine.selector, everybody);
        _allow(address(rewards), Rewards.sweep.selector, everybody);
        _allow(address(pools), EnergyPool.deposit.selector, everybody);
        _allow(address(pools), EnergyPool.swap.selector, everybody);
        _allow(address(pools), EnergyPool.redeemIn.selector, everybody);
        _allow(address(exchange), EnergyExchange.requestTakeOut.selector, everybody);
        _allow(address(exchange), EnergyExchange.accept.selector, everybody);
        _allow(address(exchange), EnergyExchange.finish.selector, everybody);
        _allow(address(exchange), EnergyExchange.confirm.selector, everybody);
        _allow(address(exchange), EnergyExchange.settle.selector, everybody);
    }

    function _allow(address target, bytes4 selector, uint64 role) private {
        bytes4[] memory selectors = new bytes4[](1);
        selectors[0] = selector;
        authority.setTargetFunctionRole(target, selectors, role);
    }

    function _enrol(address owner, uint256 secret, Kind kind) private {
        (uint256 x, uint256 y) = VM.publicKeyP256(secret);
        Channel[] memory channels = new Channel[](2);
        bool miner = kind == Kind.Miner;
        channels[0] = Channel(miner ? 1 : 0, miner ? 1 : 2, PEAK_MW, 5_000, 0);
        channels[1] = Channel(miner ? 2 : 3, miner ? 2 : 3, PEAK_MW, 5_000, 0);
        DeviceKey memory key = DeviceKey(bytes32(x), bytes32(y));
        System memory system = System(kind, key, channels, false, 0, 0, 900_000, miner ? 0 : 500, false, "");
        bytes32 content = Systems.digest(system);
        bytes memory message = abi.encodePacked(
            "MGPOP2\x00\x00",
            registry.networkDigest(),
            DeviceKeys.deviceId(key),
            owner,
            uint64(0),
            content
        );
        (bytes32 r, bytes32 s) = _signed(secret, message);
        VM.prank(owner);
        registry.admit(registry.applyFor(system, r, s), content);
    }

    function _attest(uint256 secret, uint64 channel, uint64 register) private returns (Attestation memory) {
        (uint256 x, uint256 y) = VM.publicKeyP256(secret);
        bytes memory message = abi.encodePacked(
            "MGATT1\x00\x00",
            registry.networkDigest(),
            DeviceKeys.deviceId(DeviceKey(bytes32(x), bytes32(y))),
            channel,
            uint64(block.timestamp),
            register,
            ++_seq
        );
        (bytes32 r, bytes32 s) = _signed(secret, message);
        return Attestation(uint64(block.timestamp), register, _seq, r, s);
    }

    function _signed(uint256 secret, bytes memory message) private pure returns (bytes32 r, bytes32 s) {
        (r, s) = VM.signP256(secret, sha256(message));
        if (uint256(s) > N / 2) s = bytes32(N - uint256(s));
    }
}

contract InvariantsTest {
    Handler private _handler;

    function setUp() external {
        _handler = new Handler();
        _handler.build();
    }

    /// Forge calls these contracts only.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    /// Supply is never more than the battery holds, and all of it came from lines.
    function invariant_supply() external view {
        uint256 supply = _handler.energy().totalSupply();
        require(supply <= 500e15, "supply beyond the battery");
        LineBook book = _handler.book();
        Line memory line = book.lineAt(_handler.line());
        uint256 consumed = _handler.registry().consumed(1);
        require(supply + consumed == line.minted, "tokens from elsewhere, or burned elsewhere");
        require(book.totalMinted() == line.minted, "totals");
    }

    /// Nothing is paid twice, beyond both registers, or beyond what the DAO approved.
    function invariant_paid() external view {
        Line memory line = _handler.book().lineAt(_handler.line());
        require(line.paid <= _handler.sentRegister() && line.paid <= _handler.receivedRegister(), "beyond a register");
        require(line.paid <= _handler.highestTotal(), "beyond the orders");
        uint256 energy = uint256(line.paid) - line.credit - line.forfeited;
        require(line.minted == (energy * 900_000 * 2_500) / 9, "another amount than the energy's");
        require(_handler.book().totalPaid() == line.paid, "totals");
    }

    /// The pool holds what it says, and a share never loses by another's act.
    function invariant_pool() external view {
        EnergyPool pool = _handler.pool();
        IERC20[4] memory tokens = pool.tokens();
        for (uint256 k = 0; k < 4; ++k) {
            require(tokens[k].balanceOf(address(pool)) >= pool.reserveOf(address(tokens[k])), "reserves");
        }
        require(!_handler.shareFell(), "a share fell");
    }

    /// What is in escrow, and what is owed, is there to the wei.
    function invariant_escrow() external view {
        EnergyExchange exchange = _handler.exchange();
        uint256 energy = exchange.owed(_handler.MINER(), IERC20(_handler.energy()));
        uint256 carbon = exchange.owed(_handler.MINER(), IERC20(_handler.carbon()));
        for (uint256 id = exchange.takeOuts(); id > 0 && id + 3 > exchange.takeOuts(); --id) {
            TakeOut memory request = exchange.takeOutAt(id);
            bool escrowed = request.status == RequestStatus.Open ||
                request.status == RequestStatus.Accepted ||
                request.status == RequestStatus.Finished;
            if (!escrowed) continue;
            energy += request.amount;
            carbon += request.carbon;
        }
        require(_handler.energy().balanceOf(address(exchange)) == energy, "energy in escrow");
        require(_handler.carbon().balanceOf(address(exchange)) == carbon, "carbon in escrow");
    }

    /// Soul-bound tokens never move, and nobody without a role got one.
    function invariant_roles() external view {
        MinerRegistry registry = _handler.registry();
        require(registry.ownerOf(1) == _handler.MINER() && registry.ownerOf(2) == _handler.NODE(), "a token moved");
        (bool admin, ) = _handler.authority().hasRole(0, _handler.STRANGER());
        require(!admin && _handler.energy().balanceOf(_handler.STRANGER()) == 0, "a stranger gained");
    }
}
