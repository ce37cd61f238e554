(** What gates and rates cost, and the losses as bounds: B10, L2 at one token, B8 at one time, L5
    on any grid, and L3 as a mean over random orders.

    The logarithm is any function with the two facts of `Information.v`. A divergence that would be
    infinite is excluded by a hypothesis on supports. *)

From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths Masks Velocities Steps Autoregression Samplers.
From DFM Require Import Information Accounting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Gates.
Variables (R : realFieldType) (L : logarithm R) (n : nat) (S K : finType).
Variables (w : K -> R) (qs : K -> {ffun 'I_n -> S} -> R).
Implicit Types (rho : 'I_n -> {ffun 'I_n -> S} -> K -> R) (x : {ffun 'I_n -> S}).

(** The experts' next-token laws are those of the parts. *)
Definition exact_experts (k : K) (t : 'I_n) x (v : S) : R := next_token (qs k) t x v.

(** q̂(v | x^{≤t}) = Σ_k ρ_k(x^{≤t}) q_k(v | x^{≤t}). *)
Definition gated_law rho (t : 'I_n) x (v : S) : R := routed rho exact_experts t x v.

(** Σ_t E_q KL(q(· | X^{≤t}) || q̂(· | X^{≤t})). *)
Definition next_token_cost rho : R :=
  \sum_t \sum_x mixture w qs x * KL L (next_token (mixture w qs) t x) (gated_law rho t x).

Hypotheses (w_law : law w) (qs_law : forall k, law (qs k)).

Let w_ge0 : nonneg w. Proof. by case: w_law. Qed.
Let qs_ge0 k : nonneg (qs k). Proof. by case: (qs_law k). Qed.

Lemma gated_causal rho : causal rho -> causal (gated_law rho).
Proof. by move=> rho_causal; apply: routed_causal => // k; apply: next_causal. Qed.

Lemma gated_sub_laws rho : sub_laws rho -> sub_laws (gated_law rho).
Proof.
move=> rho_sub; apply: routed_sub_laws => // k t x.
by split; [exact: token_ge0 | exact: sum_token_le1].
Qed.

(** B10. With exact experts, any gate ρ that reads the prefix only costs the mean divergence between
    the two next-token laws: KL(q || q̂) = Σ_t E_q KL(q(· | X^{≤t}) || Σ_k ρ_k q_k(· | X^{≤t})).
    That is the excess of its negative log-likelihood over H(X). The masses w and the parts q_k are
    laws; the mixed law is positive wherever the true next-token law is, else the cost is infinite.
    That ρ gives laws is not needed for the equation. *)
Theorem B10 rho : causal rho ->
  (forall t x, covers (gated_law rho t x) (next_token (mixture w qs) t x)) ->
  KL L (mixture w qs) (sequence_law (gated_law rho)) = next_token_cost rho.
Proof.
move=> rho_causal cov; apply: KL_chain => //; last exact: gated_causal.
exact: mixture_law.
Qed.

(** B10, every term is ≥ 0 if the gate gives a law over the experts, or less. *)
Theorem B10_nonneg rho t x : sub_laws rho ->
  (forall t x, covers (gated_law rho t x) (next_token (mixture w qs) t x)) ->
  0 <= mixture w qs x * KL L (next_token (mixture w qs) t x) (gated_law rho t x).
Proof.
move=> rho_sub cov; have q_ge0 := mixture_ge0 w_ge0 qs_ge0.
case: (nonneg_case (q_ge0 x)) => [->|q_gt0]; first by rewrite mul0r.
have [g_ge0 g1] := gated_sub_laws rho_sub t x.
by rewrite mulr_ge0 // gibbs //; apply: next_law.
Qed.

(** B10, a gate costs nothing only if its next-token laws are those of q at every prefix of
    positive mass. *)
Theorem B10_free rho : causal rho -> sub_laws rho ->
  (forall t x, covers (gated_law rho t x) (next_token (mixture w qs) t x)) ->
  KL L (mixture w qs) (sequence_law (gated_law rho)) <= 0 ->
  forall t x v, 0 < mixture w qs x -> gated_law rho t x v = next_token (mixture w qs) t x v.
Proof.
move=> rho_causal rho_sub cov; rewrite B10 // => cost_le0 t x v q_gt0.
have term_ge0 s y := B10_nonneg s y rho_sub cov.
have cost0 : next_token_cost rho = 0.
  apply/eqP; rewrite eq_le cost_le0 sumr_ge0 // => s _.
  by apply: sumr_ge0 => y _; apply: term_ge0.
have inner_ge0 s : 0 <= \sum_y mixture w qs y *
    KL L (next_token (mixture w qs) s y) (gated_law rho s y).
  by apply: sumr_ge0 => y _; apply: term_ge0.
have := sum_nonneg_eq0 (term_ge0 t) (sum_nonneg_eq0 inner_ge0 cost0 t) x.
move=> /eqP; rewrite mulf_eq0 gt_eqF //= => /eqP KL0.
have [g_ge0 g1] := gated_sub_laws rho_sub t x.
have q_ge0 := mixture_ge0 w_ge0 qs_ge0.
by symmetry; apply: (gibbs_eq (L := L) (next_law t q_ge0 q_gt0) g_ge0 g1 (cov t x)); rewrite KL0.
Qed.

(** B10, D7 costs 0: with the Bayes gate r_k(x^{≤t}) of the prefix the mixed next-token law is that
    of q, at every prefix, and KL(q || q̂) = 0. *)
Theorem B10_bayes :
  (forall t x, gated_law (prefix_gate w qs) t x =1 next_token (mixture w qs) t x) /\
  KL L (mixture w qs) (sequence_law (gated_law (prefix_gate w qs))) = 0.
Proof.
have same t x : gated_law (prefix_gate w qs) t x =1 next_token (mixture w qs) t x.
  by move=> v; rewrite next_mixture.
split=> //; rewrite B10.
- apply: big1 => t _; apply: big1 => x _; rewrite /KL big1 ?mulr0 // => v _; rewrite same.
  have [->|p_neq0] := eqVneq (next_token (mixture w qs) t x v) 0; first by rewrite mul0r.
  by rewrite divff // ln1 mulr0.
- exact: gate_causal.
- by move=> t x v; rewrite same.
Qed.

(** The likelihoods q_k(x^{t+1} | x^{≤t}) along x, 1 after the end. *)
Definition likelihoods x (t : nat) (k : K) : R :=
  if insub t is Some i then exact_experts k i x (x i) else 1.

(** B10, the gate of B10_bayes is D7's running gate: started at w and multiplied token by token with
    the experts' likelihoods, at every prefix of positive mass. *)
Theorem B10_running t x k : 0 < mixture w qs x ->
  running_gate w (likelihoods x) (t : 'I_n) k = prefix_gate w qs t x k.
Proof.
move=> q_gt0; have f_ge0 s : nonneg (likelihoods x s).
  by move=> j; rewrite /likelihoods; case: insubP => [i _ _|_]; rewrite ?ler01 ?token_ge0.
have prodE j (s : nat) : (s <= n)%N -> \prod_(i < s) likelihoods x i j = mass (qs j) (before s) x.
  elim: s => [|s IH] sn; first by rewrite big_ord0 mass_before0.
  rewrite big_ord_recr /= IH ?(ltnW sn) // /likelihoods insubT /exact_experts next_own /=.
  have [m0|m_neq0] := eqVneq (mass (qs j) (before s) x) 0; last by rewrite mulrC divfK.
  rewrite m0 mul0r; apply/esym/eqP; rewrite eq_le mass_ge0 // andbT -m0.
  rewrite [X in _ <= X]big_mkcond [X in X <= _]big_mkcond; apply: ler_sum => y _.
  have [/agree_onP xy|_] := boolP (agree_on (before s.+1) x y); last by case: ifP.
  by rewrite (_ : agree_on _ _ _) //; apply/agree_onP => i /ltnW; exact: xy.
have mixE : mixture w (fun j (_ : unit) => \prod_(i < t) likelihoods x i j) tt =
    mixture w (fun j => mass (qs j) (before t) ) x.
  by apply: eq_bigr => j _; rewrite prodE // ltnW.
rewrite S7_gate_is_bayes // /gate mixE; first by rewrite prodE // ltnW.
rewrite -mass_mixture mass_gt0 //; exact: mixture_ge0.
Qed.

End Gates.

Section Rates.
Variables (R : realFieldType) (L : logarithm R).

(** u log(u/û) − u + û. *)
Definition rate_cost (u uh : R) : R := u * L (u / uh) - u + uh.

(** Σ_{v≠z} [u log(u/û) − u + û]. *)
Definition generalized_KL (X : finType) (z : X) (u uh : X -> R) : R :=
  \sum_(v | v != z) rate_cost (u v) (uh v).

(** −κ̇/(1−κ) [p̂(z) − δ_{x_1}(z) + (1 − δ_{x_1}(z)) log p̂(x_1)]. *)
Definition token_generalized_KL (S : finType) (kappa dkappa : R) (ph : S -> R) (x1 z : S) : R :=
  - (dkappa / (1 - kappa)) * (ph z - delta x1 z + (1 - delta x1 z) * L (ph x1)).

(** L2, the identity at one token. For the velocities u towards x_1 and û towards p̂ of the mixture
    path, Σ_{v≠z} [u log(u/û) − u + û] =
    −κ̇/(1−κ) [p̂(z) − δ_{x_1}(z) + (1 − δ_{x_1}(z)) log p̂(x_1)]. Here κ̇ ≥ 0, κ < 1, the masses p̂
    sum to 1 and p̂(x_1) > 0 unless x_1 = z, else both sides are infinite. That p̂ is nonnegative is
    not needed. The bound by the integral over time is not proved here. *)
Theorem L2_token (S : finType) kappa dkappa (ph : S -> R) (x1 z : S) :
  0 <= dkappa -> kappa < 1 -> \sum_v ph v = 1 -> (x1 != z -> 0 < ph x1) ->
  generalized_KL z (fun v => mixture_velocity kappa dkappa x1 v z)
    (fun v => posterior_to_velocity kappa dkappa ph v z) =
  token_generalized_KL kappa dkappa ph x1 z.
Proof.
move=> dk_ge0 k_lt1 ph1 ph_gt0; rewrite /generalized_KL /token_generalized_KL.
rewrite /mixture_velocity /posterior_to_velocity; set a := dkappa / (1 - kappa).
have a_ge0 : 0 <= a by rewrite divr_ge0 // subr_ge0 ltW.
have rest : \sum_(v | v != z) ph v = 1 - ph z.
  by rewrite -ph1 [in RHS](bigD1 z) //= addrAC subrr add0r.
transitivity (\sum_(v | v != z) (a * ph v + delta x1 v * (a * - L (ph x1) - a))).
  apply: eq_bigr => v vz; rewrite /rate_cost /delta (negPf vz) !subr0.
  have [vx1|_] := eqVneq v x1; last first.
    by rewrite !mulr0 !mul0r sub0r oppr0 add0r addr0.
  rewrite /= mulr1 mul1r vx1; case: (nonneg_case a_ge0) => [->|a_gt0].
    by rewrite !mul0r !subrr addr0.
  have x1z : x1 != z by rewrite -vx1.
  have -> : a / (a * ph x1) = (ph x1)^-1.
    by rewrite invfM mulrA divff ?mul1r // lt0r_neq0.
  by rewrite lnV ?ph_gt0 //; ring.
rewrite big_split /= -mulr_sumr rest -mulr_suml.
have -> : \sum_(v | v != z) delta x1 v = 1 - delta x1 z :> R.
  by rewrite -(sum_delta1 R x1) [in RHS](bigD1 z) //= addrAC subrr add0r.
by ring.
Qed.

(** The log-sum inequality. *)
Lemma log_sum (K : finType) (a b : K -> R) : nonneg a -> nonneg b -> covers b a ->
  (\sum_k a k) * L ((\sum_k a k) / (\sum_k b k)) <= \sum_k a k * L (a k / b k).
Proof.
move=> a_ge0 b_ge0 b_a; rewrite -/(KL L a b).
have A_ge0 : 0 <= \sum_k a k by apply: sumr_ge0.
case: (nonneg_case A_ge0) => [A0|A_gt0].
  by rewrite A0 mul0r /KL big1 // => k _; rewrite (sum_nonneg_eq0 a_ge0 A0) mul0r.
have B_gt0 : 0 < \sum_k b k.
  have [k ak|none] := pickP (fun k => 0 < a k).
    exact: lt_le_trans (b_a k ak) (sum_ge_term k b_ge0).
  move: A_gt0; rewrite big1 ?ltxx // => k _.
  by case: (nonneg_case (a_ge0 k)) => // ak; have := none k; rewrite ak.
rewrite (KL_scale L a_ge0 b_a A_gt0 B_gt0) ler_addl mulr_ge0 //.
apply: gibbs.
- by split=> [k|]; [rewrite divr_ge0 | rewrite -mulr_suml divff // lt0r_neq0].
- by move=> k; rewrite divr_ge0 // ltW.
- by rewrite -mulr_suml divff // lt0r_neq0.
by move=> k; rewrite pmulr_lgt0 ?invr_gt0 // => /b_a bk; rewrite divr_gt0.
Qed.

(** r_k u^k for every expert, as masses. *)
Definition weighted_rates (K X : finType) (r : K -> R) (u : K -> X -> R) (k : K) (v : X) : R :=
  r k * u k v.

(** B8, the rates at one time and state: with û = Σ_k r̂_k û^k and u = Σ_k r_k u^k,
    Σ_{y≠x} [u log(u/û) − u + û] ≤ Σ_k of the same for r_k u^k against r̂_k û^k. The products
    r_k u^k and r̂_k û^k are nonnegative off the diagonal, and r̂_k û^k(y) > 0 wherever
    r_k u^k(y) > 0, else the right side is infinite. Weights need not sum to 1. The bound of the
    divergence of the laws by an integral over time is not proved here. *)
Theorem B8_rates (K X : finType) (r rh : K -> R) (u uh : K -> X -> R) (x : X) :
  (forall k y, y != x -> 0 <= r k * u k y) -> (forall k y, y != x -> 0 <= rh k * uh k y) ->
  (forall k y, y != x -> 0 < r k * u k y -> 0 < rh k * uh k y) ->
  generalized_KL x (mixture r u) (mixture rh uh) <=
  \sum_k generalized_KL x (weighted_rates r u k) (weighted_rates rh uh k).
Proof.
move=> ru_ge0 ruh_ge0 cov; rewrite /generalized_KL exchange_big; apply: ler_sum => y yx /=.
rewrite /rate_cost big_split sumrB /= ler_add2r ler_add2r.
apply: (@log_sum K (fun k => r k * u k y) (fun k => rh k * uh k y)) => k.
- exact: ru_ge0.
- exact: ruh_ge0.
exact: cov.
Qed.

End Rates.

(** A chain whose every step is at least that of another chain times a positive weight reaches the
    final state with a probability bounded by the weights' mean logarithms (Jensen at each step). *)
Section ChainBound.
Variables (R : realFieldType) (L : logarithm R).

Lemma jensen (X : finType) (p g : X -> R) : law p -> (forall x, 0 < p x -> 0 < g x) ->
  0 < \sum_x p x * g x /\ \sum_x p x * L (g x) <= L (\sum_x p x * g x).
Proof.
move=> [p_ge0 p1] g_gt0; have pg_ge0 x : 0 <= p x * g x.
  by case: (nonneg_case (p_ge0 x)) => [->|px]; rewrite ?mul0r // mulr_ge0 // ltW ?g_gt0.
have G_gt0 : 0 < \sum_x p x * g x.
  have [x px|none] := pickP (fun x => 0 < p x).
    by apply: lt_le_trans (sum_ge_term x pg_ge0); rewrite mulr_gt0 ?g_gt0.
  have : 0 < \sum_x p x by rewrite p1 ltr01.
  rewrite big1 ?ltxx // => x _.
  by case: (nonneg_case (p_ge0 x)) => // px; have := none x; rewrite px.
split=> //; set G := \sum_x _ in G_gt0 *.
have : \sum_x p x * (L (g x) - L G) <= \sum_x (p x * g x / G - p x).
  apply: ler_sum => x _; case: (nonneg_case (p_ge0 x)) => [->|px].
    by rewrite !mul0r subrr.
  have gx := g_gt0 x px; rewrite -ln_div // -mulrA -[X in _ <= _ - X]mulr1 -mulrBr.
  by rewrite ler_pmul2l // ln_le // divr_gt0.
rewrite sumrB -mulr_suml p1 divff ?subrr ?lt0r_neq0 //.
by under eq_bigr do rewrite mulrBr; rewrite sumrB -mulr_suml p1 mul1r subr_le0.
Qed.

(** Equality only where g is constant. *)
Lemma jensen_eq (X : finType) (p g : X -> R) : law p -> (forall x, 0 < p x -> 0 < g x) ->
  L (\sum_x p x * g x) <= \sum_x p x * L (g x) ->
  forall x, 0 < p x -> g x = \sum_y p y * g y.
Proof.
move=> p_law g_gt0; have [G_gt0 _] := jensen p_law g_gt0; have [p_ge0 p1] := p_law.
set G := \sum_x _ in G_gt0 * => le x px.
pose f y := p y * (g y / G - 1 - (L (g y) - L G)).
have f_ge0 y : 0 <= f y.
  rewrite /f; case: (nonneg_case (p_ge0 y)) => [->|py]; first by rewrite mul0r.
  have gy := g_gt0 y py; rewrite mulr_ge0 // subr_ge0 -ln_div // ln_le // divr_gt0 //.
have f0 : \sum_y f y = 0.
  apply/eqP; rewrite eq_le sumr_ge0 // andbT.
  have -> : \sum_y f y = L G - \sum_y p y * L (g y).
    rewrite (eq_bigr (fun y => p y * g y / G - p y * L (g y) + p y * (L G - 1))); last first.
      by move=> y _; rewrite /f; ring.
    by rewrite big_split /= sumrB -!mulr_suml -/G p1 divff ?lt0r_neq0 //
      mul1r addrAC [1 + _]addrC subrK.
  by rewrite subr_le0.
have gx := g_gt0 x px; have /eqP := sum_nonneg_eq0 f_ge0 f0 x.
rewrite /f mulf_eq0 gt_eqF //= -ln_div // subr_eq0 => /eqP eq1.
apply/eqP; apply: contraT => neq; have : g x / G != 1.
  by apply: contra neq => /eqP gG; rewrite -[g x](divfK (lt0r_neq0 G_gt0)) gG mul1r.
by move=> /(ln_lt L (divr_gt0 gx G_gt0)); rewrite eq1 ltxx.
Qed.

Variables (Z : finType) (goal : Z) (P Tr w : nat -> Z -> Z -> R) (c : nat -> Z -> R).

(** The probability of P's chain to be at the goal n steps after step t, from z. *)
Fixpoint hitting (n t : nat) (z : Z) : R :=
  if n is n'.+1 then \sum_y hitting n' t.+1 y * P t y z else delta z goal.

Lemma hitting_run p n t :
  \sum_z hitting n t z * run P p t z = run P p (n + t)%N goal.
Proof.
elim: n t => [|n IH] t /=; first exact: (sum_delta_point goal (run P p t)).
under eq_bigr do rewrite mulr_suml; rewrite exchange_big /=.
rewrite -[RHS]/(run P p (n + t).+1 goal) -addnS -IH; apply: eq_bigr => y _ /=.
by rewrite /push_forward mulr_sumr; apply: eq_bigr => z _; rewrite mulrA.
Qed.

(** E Σ of −log of the weights of step t, under the other chain. *)
Definition step_price (t : nat) : R := \sum_z c t z * \sum_y Tr t y z * - L (w t y z).

Variable T : nat.
Hypotheses (c_ge0 : forall t, (t <= T)%N -> nonneg (c t))
  (P_ge0 : forall t y z, (t < T)%N -> 0 <= P t y z)
  (Tr_law : forall t z, (t < T)%N -> 0 < c t z -> law (fun y => Tr t y z))
  (c_next : forall t y, (t < T)%N -> push_forward (Tr t) (c t) y = c t.+1 y)
  (w_gt0 : forall t y z, (t < T)%N -> 0 < c t z -> 0 < Tr t y z -> 0 < w t y z)
  (P_ge : forall t y z, (t < T)%N -> 0 < c t z -> Tr t y z * w t y z <= P t y z)
  (c_end : forall z, 0 < c T z -> z = goal).

Lemma hitting_ge0 n t z : (n + t = T)%N -> 0 <= hitting n t z.
Proof.
elim: n t z => [|n IH] t z nt /=; first exact: delta_ge0.
apply: sumr_ge0 => y _; rewrite mulr_ge0 ?IH ?addnS //.
by apply: P_ge0; rewrite -nt addSn ltnS leq_addl.
Qed.

Lemma chain_bound n t : (n + t = T)%N ->
  (forall z, 0 < c t z -> 0 < hitting n t z) /\
  \sum_z c t z * - L (hitting n t z) <= \sum_(s < n) step_price (t + s)%N.
Proof.
elim: n t => [|n IH] t nt /=.
  rewrite add0n in nt; rewrite big_ord0 nt; split=> [z /c_end ->|].
    by rewrite /delta eqxx ltr01.
  rewrite big1 ?lexx // => z _; case: (nonneg_case (c_ge0 (leqnn T) z)) => [->|/c_end ->].
    by rewrite mul0r.
  by rewrite /delta eqxx ln1 oppr0 mulr0.
have tT : (t < T)%N by rewrite -nt addSn ltnS leq_addl.
have nt' : (n + t.+1 = T)%N by rewrite addnS.
have [V_gt0 bound] := IH _ nt'.
have next_gt0 y z : 0 < c t z -> 0 < Tr t y z -> 0 < c t.+1 y.
  move=> cz Ty; rewrite -c_next //; apply: lt_le_trans (sum_ge_term z _).
    by rewrite mulr_gt0.
  move=> z'; case: (nonneg_case (c_ge0 (ltnW tT) z')) => [->|cz']; first by rewrite mulr0.
  by rewrite mulr_ge0 ?(ltW cz') //; case: (Tr_law tT cz').
have step z : 0 < c t z -> 0 < \sum_y hitting n t.+1 y * P t y z /\
    - L (\sum_y hitting n t.+1 y * P t y z) <=
    \sum_y Tr t y z * (- L (w t y z) + - L (hitting n t.+1 y)).
  move=> cz; have g_gt0 y : 0 < Tr t y z -> 0 < w t y z * hitting n t.+1 y.
    by move=> Ty; rewrite mulr_gt0 ?w_gt0 // V_gt0 // (next_gt0 y z).
  have [G_gt0 le] := jensen (Tr_law tT cz) g_gt0.
  have PG : \sum_y Tr t y z * (w t y z * hitting n t.+1 y) <= \sum_y hitting n t.+1 y * P t y z.
    apply: ler_sum => y _; rewrite mulrA [X in _ <= X]mulrC.
    by apply: ler_wpmul2r; [apply: hitting_ge0 | apply: P_ge].
  split; first exact: lt_le_trans PG.
  rewrite ler_oppl; apply: le_trans (ln_homo L G_gt0 PG); apply: le_trans le.
  rewrite -sumrN; apply: ler_sum => y _.
  have [T_ge0 _] := Tr_law tT cz; case: (nonneg_case (T_ge0 y)) => [->|Ty].
    by rewrite !mul0r oppr0.
  by rewrite lnM ?w_gt0 ?V_gt0 ?(next_gt0 y z) // -opprD mulrN opprK.
split=> [z /step [] //|].
rewrite big_ord_recl addn0.
under [X in _ <= _ + X]eq_bigr do rewrite /= /bump leq0n add1n addnS -addSn.
apply: le_trans (ler_add (lexx _) bound); rewrite /step_price.
under [X in _ <= _ + X]eq_bigr do rewrite -c_next // /push_forward mulr_suml.
rewrite [X in _ <= _ + X]exchange_big -big_split; apply: ler_sum => z _ /=.
case: (nonneg_case (c_ge0 (ltnW tT) z)) => [->|cz].
  by rewrite !mul0r big1 ?addr0 // => y _; rewrite mulr0 mul0r.
have [_ le] := step z cz; apply: le_trans (ler_wpmul2l (c_ge0 (ltnW tT) z) le) _.
rewrite mulr_sumr mulr_sumr -big_split /= le_eqVlt; apply/orP; left; apply/eqP.
by apply: eq_bigr => y _ /=; ring.
Qed.

Lemma chain_bound_start z0 : c 0%N =1 delta z0 -> 0 < run P (delta z0) T goal /\
  - L (run P (delta z0) T goal) <= \sum_(t < T) step_price t.
Proof.
move=> c0; have [V_gt0 bound] := chain_bound (addn0 T).
have runE : run P (delta z0) T goal = hitting T 0 z0.
  rewrite -{1}(addn0 T) -hitting_run /=.
  by under eq_bigr do rewrite mulrC; exact: sum_delta.
have c00 : 0 < c 0%N z0 by rewrite c0 /delta eqxx ltr01.
rewrite runE; split; first exact: V_gt0.
apply: le_trans _ bound; under eq_bigr do rewrite c0.
by rewrite sum_delta.
Qed.

End ChainBound.

Section Grid.
Variables (R : realFieldType) (L : logarithm R) (I S : finType) (m : S).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.
Implicit Types (x z : states) (kappa : nat -> I -> R) (phat : nat -> I -> S -> states -> R).

(** Revealed tokens are carried over: 1[z^i = m] λ^i [p̂^i(v | z) − δ_{z^i}(v)]. *)
Definition carry_over_velocity (k k' : I -> R) (ph : I -> S -> states -> R) (i : I) (v : S) z : R :=
  (z i == m)%:R * step_size (k i) (k' i) * (ph i v z - delta (z i) v).

(** The model's step from κ_t to κ_{t+1}, all positions at once. *)
Definition model_steps kappa phat (t : nat) : states -> states -> R :=
  step_kernel (carry_over_velocity (kappa t) (kappa t.+1) (phat t)).

(** Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t)) | x_0, x_1]. *)
Definition grid_loss kappa phat (T : nat) (h : pairs) : R :=
  \sum_(t < T) \sum_i step_size (kappa t i) (kappa t.+1 i) *
    \sum_z conditional_path (kappa t) h z * ((z i == m)%:R * - L (phat t i (h.2 i) z)).

(** The product over the newly revealed positions of p̂^i(x_1^i | z). *)
Definition revealed_weight (ph : I -> S -> states -> R) x1 (y z : states) : R :=
  \prod_i (if (z i == m) && (y i != m) then ph i (x1 i) z else 1).

Lemma pair_kernelE (k k' : I -> R) x0 x1 y z :
  step_kernel (pair_velocity k k' (x0, x1)) y z =
  conditional_path (fun i => step_size (k i) (k' i)) (z, x1) y.
Proof.
apply: eq_bigr => i _; rewrite /pair_velocity /conditional_velocity /mixture_token /=.
by ring.
Qed.

Lemma conditional_support (k : I -> R) x0 x1 z i :
  0 < conditional_path k (x0, x1) z -> (z i == x0 i) || (z i == x1 i).
Proof.
apply: contraLR; rewrite negb_or => /andP [/negPf z0 /negPf z1].
rewrite /conditional_path /product_law (bigD1 i) //= /mixture_token /delta z0 z1.
by rewrite !mulr0 addr0 mul0r ltxx.
Qed.

(** How far the true chain lies below the model's: factor by factor. *)
Lemma model_step_ge (k k' : I -> R) (ph : I -> S -> states -> R) x0 x1 y z :
  (forall i, 0 <= step_size (k i) (k' i) <= 1) -> (forall i v, 0 <= ph i v z) ->
  (forall i, x1 i != m) -> (forall i, (z i == m) || (z i == x1 i)) ->
  step_kernel (pair_velocity k k' (x0, x1)) y z * revealed_weight ph x1 y z <=
  step_kernel (carry_over_velocity k k' ph) y z.
Proof.
move=> l01 ph_ge0 data zP; rewrite pair_kernelE -big_split.
apply: ler_prod => i _ /=; have /andP [l_ge0 l_le1] := l01 i.
have l1_ge0 : 0 <= 1 - step_size (k i) (k' i) by rewrite subr_ge0.
have w_ge0 : 0 <= (if (z i == m) && (y i != m) then ph i (x1 i) z else 1).
  by case: ifP => _; rewrite ?ler01.
rewrite mulr_ge0 ?mixture_token_ge0 ?l01 //=.
rewrite /mixture_token /carry_over_velocity; have := zP i.
have [zm _|zm /= /eqP zx] := eqVneq (z i) m; last first.
  by rewrite zx !mul0r addr0 mulr1 -mulrDl subrK mul1r.
rewrite /= mul1r zm; have [ym|ym] := eqVneq (y i) m.
  rewrite ym /delta eqxx eq_sym (negPf (data i)) /= !mulr1 mulr0 addr0.
  rewrite -subr_ge0 (_ : _ - _ = step_size (k i) (k' i) * ph i m z); last by ring.
  by rewrite mulr_ge0.
rewrite /= /delta (negPf ym) mulr0 subr0 !add0r.
have [->|_] := eqVneq (y i) (x1 i); first by rewrite mulr1.
by rewrite mulr0 mul0r mulr_ge0.
Qed.

Lemma model_step_ge0 (k k' : I -> R) (ph : I -> S -> states -> R) y z :
  (forall i, 0 <= step_size (k i) (k' i) <= 1) -> (forall i v, 0 <= ph i v z) ->
  0 <= step_kernel (carry_over_velocity k k' ph) y z.
Proof.
move=> l01 ph_ge0; apply: prodr_ge0 => i _; rewrite /carry_over_velocity.
have /andP [l_ge0 l_le1] := l01 i.
case: (z i == m); last by rewrite !mul0r addr0 delta_ge0.
have -> : delta (z i) (y i) + 1 * step_size (k i) (k' i) * (ph i (y i) z - delta (z i) (y i)) =
  (1 - step_size (k i) (k' i)) * delta (z i) (y i) + step_size (k i) (k' i) * ph i (y i) z :> R.
  by ring.
by rewrite addr_ge0 ?mulr_ge0 ?delta_ge0 ?subr_ge0.
Qed.

(** The mean of the weight's logarithm over one step of the true chain. *)
Lemma step_price_at (k k' : I -> R) (ph : I -> S -> states -> R) x0 x1 z :
  (forall i, 0 <= step_size (k i) (k' i) <= 1) -> (forall i, x1 i != m) ->
  (forall i, z i == m -> 0 < step_size (k i) (k' i) -> 0 < ph i (x1 i) z) ->
  (forall i, (z i == m) || (z i == x1 i)) ->
  (forall y, 0 < step_kernel (pair_velocity k k' (x0, x1)) y z -> 0 < revealed_weight ph x1 y z) /\
  \sum_y step_kernel (pair_velocity k k' (x0, x1)) y z * - L (revealed_weight ph x1 y z) =
  \sum_i step_size (k i) (k' i) * ((z i == m)%:R * - L (ph i (x1 i) z)).
Proof.
move=> l01 data ph_gt0 zP; pose lam i := step_size (k i) (k' i).
have Tr_ge0 y : 0 <= conditional_path lam (z, x1) y by apply: conditional_path_ge0.
have factor_gt0 y i : 0 < conditional_path lam (z, x1) y ->
    0 < (if (z i == m) && (y i != m) then ph i (x1 i) z else 1).
  move=> Ty; case: ifP => [/andP [zm ym]|_]; last exact: ltr01.
  apply: ph_gt0 => //; rewrite lt_neqAle eq_sym; have /andP [-> _] := l01 i; rewrite andbT.
  apply: contraTneq Ty => l0; rewrite /conditional_path /product_law (bigD1 i) //=.
  rewrite /mixture_token /lam l0 subr0 mul1r mul0r addr0 /delta (eqP zm) (negPf ym) mul0r.
  by rewrite ltxx.
split=> [y|]; first by rewrite pair_kernelE => Ty; apply: prodr_gt0 => i _; apply: factor_gt0.
under eq_bigr do rewrite pair_kernelE -/lam.
transitivity (\sum_y conditional_path lam (z, x1) y *
    \sum_i (y i != m)%:R * ((z i == m)%:R * - L (ph i (x1 i) z))).
  apply: eq_bigr => y _; case: (nonneg_case (Tr_ge0 y)) => [->|Ty]; first by rewrite !mul0r.
  congr (_ * _); rewrite /revealed_weight ln_prod => [|i]; last exact: factor_gt0.
  rewrite -sumrN; apply: eq_bigr => i _.
  by case: (z i == m); case: (y i != m); rewrite /= ?ln1 !(mul1r, mul0r, mulr0, oppr0).
under eq_bigr do rewrite mulr_sumr; rewrite exchange_big; apply: eq_bigr => i _ /=.
under eq_bigr do rewrite mulrA; rewrite -mulr_suml.
have [zm|_] := eqVneq (z i) m; last by rewrite !mul0r !mulr0.
congr (_ * _).
have tokenE : \sum_(y : states) (y i == m)%:R * conditional_path lam (z, x1) y = 1 - lam i.
  transitivity (mixture_token (lam i) (z i) (x1 i) m).
    by apply: (token_law_product (p := fun i => mixture_token (lam i) (z i) (x1 i))) => j;
      apply: sum_mixture_token.
  rewrite /mixture_token /delta zm eqxx [m == x1 i]eq_sym (negPf (data i)).
  by rewrite mulr1 mulr0 addr0.
transitivity (\sum_(y : states) (conditional_path lam (z, x1) y -
    (y i == m)%:R * conditional_path lam (z, x1) y)).
  apply: eq_bigr => y _.
  by case: (y i == m); rewrite /= ?(mulr0, mulr1, mul0r, mul1r) ?subrr ?subr0.
by rewrite sumrB tokenE sum_conditional_path opprB addrC subrK.
Qed.

(** What L5 asks of a grid between the prompt x_0 and x_1: it starts at 0, does not decrease or
    exceed 1, and is 1 at the end wherever x_1 is not given by the prompt. *)
Definition grid kappa (T : nat) (h : pairs) : Prop :=
  [/\ forall i, kappa 0%N i = 0, forall t i, (t < T)%N -> kappa t i <= kappa t.+1 i,
      forall i, kappa T i <= 1 & forall i, h.1 i != h.2 i -> kappa T i = 1].

Lemma grid_ge0 kappa T h t i : grid kappa T h -> (t <= T)%N -> 0 <= kappa t i.
Proof.
move=> [k0 le _ _]; elim: t => [|t IH] tT; first by rewrite k0.
exact: le_trans (IH (ltnW tT)) (le t i tT).
Qed.

Lemma grid_le1 kappa T h t i : grid kappa T h -> (t <= T)%N -> kappa t i <= 1.
Proof.
move=> [_ le kT _] tT; suff back n : (n <= T)%N -> kappa (T - n)%N i <= 1.
  by rewrite -(subKn tT) back // leq_subr.
elim: n => [|n IH] nT; first by rewrite subn0.
apply: le_trans (IH (ltnW nT)); rewrite -(subnSK nT); apply: le.
by rewrite ltn_subrL /= (leq_ltn_trans _ nT).
Qed.

(** L5. From the prompt x_0, masks and tokens of x_1, on any grid κ(t, i), the model's chain ends in
    x_1 with a positive probability, and
    −log p̂_T(x_1) ≤ Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))].
    X_t is the masked path of x_1, the model starts from x_0, and revealed tokens are carried over.
    The data x_1 have no masks. The masses p̂^i(v | z) are nonnegative, and p̂^i(x_1^i | z) > 0 at
    every step that may reveal i from a state that X_t may be in, else the right side is infinite.
    Unnecessary: that the p̂^i are laws, or give the mask no mass. Nothing is asked of p̂ across
    times, and several positions may move at once. *)
Theorem L5 kappa phat (T : nat) (x0 x1 : states) : grid kappa T (x0, x1) ->
  (forall i, x1 i != m) -> (forall i, (x0 i == m) || (x0 i == x1 i)) ->
  (forall t i v z, (t < T)%N -> 0 <= phat t i v z) ->
  (forall t i z, (t < T)%N -> 0 < conditional_path (kappa t) (x0, x1) z -> z i == m ->
    0 < step_size (kappa t i) (kappa t.+1 i) -> 0 < phat t i (x1 i) z) ->
  0 < run (model_steps kappa phat) (delta x0) T x1 /\
  - L (run (model_steps kappa phat) (delta x0) T x1) <= grid_loss kappa phat T (x0, x1).
Proof.
move=> kP data x0P ph_ge0 ph_gt0; have [k0 k_le _ k_end] := kP.
have l01 t : (t < T)%N -> forall i, 0 <= step_size (kappa t i) (kappa t.+1 i) <= 1.
  by move=> tT i; apply: Q2_step_size; [apply: k_le | apply: (grid_le1 _ kP)].
have k01 t : (t <= T)%N -> forall i, 0 <= kappa t i <= 1.
  by move=> tT i; rewrite (grid_ge0 i kP) ?(grid_le1 i kP).
have zP t z : 0 < conditional_path (kappa t) (x0, x1) z -> forall i, (z i == m) || (z i == x1 i).
  move=> cz i; case/orP: (conditional_support i cz) => /eqP ->; first exact: x0P.
  by rewrite eqxx orbT.
have price t z : (t < T)%N -> 0 < conditional_path (kappa t) (x0, x1) z -> _ :=
  fun tT cz => @step_price_at (kappa t) (kappa t.+1) (phat t) x0 x1 z (l01 t tT) data
    (fun i => ph_gt0 t i z tT cz) (zP t z cz).
pose Tr t := step_kernel (pair_velocity (kappa t) (kappa t.+1) (x0, x1)).
suff [p_gt0 le] : 0 < run (model_steps kappa phat) (delta x0) T x1 /\
    - L (run (model_steps kappa phat) (delta x0) T x1) <=
    \sum_(t < T) step_price L Tr (fun t => revealed_weight (phat t) x1)
      (fun t => conditional_path (kappa t) (x0, x1)) t.
  split=> //; apply: le_trans le _.
  rewrite le_eqVlt; apply/orP; left; apply/eqP; apply: eq_bigr => t _.
  under [RHS]eq_bigr do rewrite mulr_sumr; rewrite exchange_big /step_price.
  apply: eq_bigr => z _ /=.
  case: (nonneg_case (conditional_path_ge0 (x0, x1) (k01 t (ltnW (ltn_ord t))) z)) => [->|cz].
    by rewrite mul0r big1 // => i _; rewrite mul0r mulr0.
  have [_ ->] := price t z (ltn_ord t) cz.
  by rewrite mulr_sumr; apply: eq_bigr => i _; rewrite mulrCA.
apply: chain_bound_start; rewrite ?/Tr {Tr}.
- by move=> t tT z; apply: conditional_path_ge0; apply: k01.
- by move=> t y z tT; apply: model_step_ge0; [apply: l01 | move=> i v; apply: ph_ge0].
- move=> t z tT _; split=> [y|].
    by rewrite pair_kernelE; apply: conditional_path_ge0; apply: l01.
  by under eq_bigr do rewrite pair_kernelE; apply: sum_conditional_path.
- move=> t y tT; apply: Q3_joint => i k1; apply/eqP.
  by rewrite eq_le (grid_le1 i kP) //= -k1 k_le.
- by move=> t y z tT cz; case: (price t z tT cz) => + _; apply.
- move=> t y z tT cz; apply: model_step_ge => //; [exact: l01 | | exact: zP cz].
  by move=> i v; apply: ph_ge0.
- move=> z cz; apply/ffunP => i; have := conditional_support i cz.
  have [<-|x01] := eqVneq (x0 i) (x1 i); first by rewrite orbb => /eqP.
  move=> /orP [/eqP z0|/eqP //]; move: cz.
  rewrite /conditional_path /product_law (bigD1 i) //= /mixture_token (k_end i x01) subrr.
  by rewrite mul0r add0r mul1r z0 /delta (negPf x01) mul0r ltxx.
- move=> z; rewrite -delta_all; apply: eq_bigr => i _.
  by rewrite /mixture_token k0 subr0 mul1r mul0r addr0.
Qed.

End Grid.

(** L5 with equality. *)
Section Orders.
Variables (R : realFieldType) (L : logarithm R) (I S : finType) (m : S) (s : I -> nat).
Notation states := {ffun I -> S}.
Notation all_m := ([ffun=> m] : states).
Implicit Types (x z : states) (g : I -> S -> states -> R).

(** L5, equality where every position is revealed in one step of its own choice s(i), λ_t^i in
    {0, 1}, for any order and blocks: −log p̂_T(x_1) is the sum. Only the masses p̂^i(x_1^i | z) at
    the states z of x_1's own path need be positive. *)
Theorem L5_equality g (T : nat) x1 : (forall i, (s i < T)%N) ->
  (forall i, 0 < g i (x1 i) (cut s (s i) x1 all_m)) ->
  - L (run (model_steps m (order_table R s) (fun=> g)) (delta all_m) T x1) =
  grid_loss L m (order_table R s) (fun=> g) T (all_m, x1).
Proof.
move=> le g_gt0.
have cutm i : cut s (s i) x1 all_m i == m by rewrite !ffunE ltnn.
have -> : grid_loss L m (order_table R s) (fun=> g) T (all_m, x1) =
    \sum_i - L (g i (x1 i) (cut s (s i) x1 all_m)).
  rewrite /grid_loss (A4_any_order (all_m, x1)
    (fun _ i z => (z i == m)%:R * - L (g i (x1 i) z)) le) /=.
  by apply: eq_bigr => i _; rewrite cutm mul1r.
rewrite sumrN -ln_prod // -(S1 g all_m x1 le); congr (- L _).
elim: T x1 {le g_gt0 cutm} => [//|t IH] x1 /=.
apply: eq_bigr => z _; rewrite IH S1_any_order.
have [/forallP from|_] := boolP (agree_from s t all_m z); last by rewrite !mul0r !mulr0.
congr (_ * _); apply: eq_bigr => i _; congr (_ + _).
have [_ _ _ _ step] := A1_any_order R s t i.
rewrite /carry_over_velocity step /reveal_velocity -mulrA.
have [st|_] := eqVneq (s i) t; last by rewrite !mul0r mulr0.
by have := from i; rewrite st leqnn ffunE /= eq_sym => ->; rewrite !mul1r.
Qed.

End Orders.

(** Integrals of polynomials, and the weights of L3. *)
Section Integrals.
Variable R : realFieldType.
Implicit Types p q : {poly R}.

(** An antiderivative, and the integral from 0 to 1. *)
Definition primitive p : {poly R} := \poly_(i < (size p).+1) (p`_i.-1 / i%:R).
Definition integral p : R := (primitive p).[1].

Lemma coef_primitive p i : (primitive p)`_i = p`_i.-1 / i%:R.
Proof.
rewrite coef_poly; case: ltnP => // lt; case: i lt => [|i] lt; first by rewrite invr0 mulr0.
by rewrite nth_default ?mul0r.
Qed.

Lemma primitive0 p : (primitive p).[0] = 0.
Proof. by rewrite horner_coef0 coef_primitive invr0 mulr0. Qed.

Lemma deriv_primitive p : (primitive p)^`() = p.
Proof.
apply/polyP => i; rewrite coef_deriv coef_primitive /= -mulr_natr divfK //.
by rewrite pnatr_eq0.
Qed.

(** The integral of a derivative. *)
Lemma integral_deriv q : integral q^`() = q.[1] - q.[0].
Proof.
have -> : q = primitive q^`() + (q`_0)%:P.
  apply/polyP => i; rewrite coefD coef_primitive coefC coef_deriv.
  case: i => [|i] /=; first by rewrite invr0 mulr0 add0r.
  by rewrite addr0 -mulr_natr mulfK // pnatr_eq0.
by rewrite !hornerD !hornerC primitive0 add0r addrK derivD derivC addr0 deriv_primitive.
Qed.

Lemma integral_linear a p q : integral (a *: p + q) = a * integral p + integral q.
Proof.
rewrite -{1}(deriv_primitive p) -{1}(deriv_primitive q) -derivZ -derivD integral_deriv.
by rewrite !hornerD !hornerZ !primitive0 mulr0 addr0 subr0.
Qed.

Lemma integral0 : integral 0 = 0.
Proof. by rewrite -(deriv0 R) integral_deriv !horner0 subrr. Qed.

Lemma integral_sum (J : finType) (P : pred J) (a : J -> R) (p : J -> {poly R}) :
  integral (\sum_(j | P j) a j *: p j) = \sum_(j | P j) a j * integral (p j).
Proof.
elim/big_rec2: _ => [|j x y _ <-]; first exact: integral0.
exact: integral_linear.
Qed.

(** κ^a (1−κ)^b. *)
Definition reveal_poly (a b : nat) : {poly R} := 'X ^+ a * (1 - 'X) ^+ b.

(** a! b! / (a + b + 1)!. *)
Definition order_weight (a b : nat) : R := (a`! * b`!)%:R / ((a + b).+1)`!%:R.

(** L3, the weights: ∫ κ^a (1−κ)^{M−1} dκ = a! (M−1)! / N!, N = a + M; b is M − 1. Over any field of
    characteristic 0, the integral is that of polynomials. *)
Theorem L3_weight a b : integral (reveal_poly a b) = order_weight a b.
Proof.
elim: b a => [|b IH] a.
  rewrite /reveal_poly expr0 mulr1 /order_weight addn0 fact0 muln1.
  have -> : 'X^a = (((a.+1)%:R)^-1 *: 'X^a.+1)^`() :> {poly R}.
    by rewrite derivZ derivXn /= -scaler_nat scalerA mulVf ?scale1r // pnatr_eq0.
  rewrite integral_deriv !hornerZ !hornerXn expr1n expr0n mulr0 subr0 mulr1.
  rewrite factS natrM; field.
  by rewrite -mulrS !pnatr_eq0 -lt0n fact_gt0.
have -> : reveal_poly a b.+1 = (-1) *: reveal_poly a.+1 b + reveal_poly a b.
  by rewrite /reveal_poly scaleN1r !exprS; ring.
rewrite integral_linear !IH /order_weight addSn addnS !factS !natrM.
have f_neq0 n : n`!%:R != 0 :> R by rewrite pnatr_eq0 -lt0n fact_gt0.
field.
by rewrite f_neq0 -!natrD -mulrS !pnatr_eq0.
Qed.

(** L3, the same for every schedule: ∫ f(κ(t)) κ̇(t) dt = ∫ f(κ) dκ, for polynomials f and κ with
    κ(0) = 0 and κ(1) = 1. *)
Theorem L3_every_schedule f kappa : kappa.[0] = 0 -> kappa.[1] = 1 ->
  integral ((f \Po kappa) * kappa^`()) = integral f.
Proof.
move=> k0 k1; rewrite -{1}(deriv_primitive f) -deriv_comp integral_deriv.
by rewrite !horner_comp k0 k1 primitive0 subr0.
Qed.

End Integrals.

(** Uniformly random orders: of the N! orders, |A|! (N−|A|−1)! have the set A before i. *)
Section Counting.
Local Open Scope nat_scope.
Variable n : nat.
Implicit Types (A B : {set 'I_n}) (s : {perm 'I_n}) (i j : 'I_n) (a b : nat).

(** The positions of the first a tokens in the order s, where s(i) is the rank of i; and those
    before i. *)
Definition first_in (s : {perm 'I_n}) (a : nat) : {set 'I_n} := [set j | (s j < a)%N].
Definition earlier (s : {perm 'I_n}) (i : 'I_n) : {set 'I_n} := first_in s (s i).

Definition orders_with (b : nat) (B : {set 'I_n}) : nat := \sum_s (first_in s b == B).
Definition orders_at (b a : nat) (B : {set 'I_n}) (j : 'I_n) : nat :=
  \sum_s ((first_in s b == B) && (s j == a :> nat)).

Lemma card_first_in s a : (a <= n)%N -> #|first_in s a| = a.
Proof.
move=> an; have -> : first_in s a = s @^-1: [set j : 'I_n | (j < a)%N].
  by apply/setP => j; rewrite !inE.
rewrite card_preimset; last exact: perm_inj.
by rewrite cardsE -sum1_card (big_ord_narrow an) sum1_card card_ord.
Qed.

Lemma orders_at_sym b a B i j : (i \in B) = (j \in B) -> orders_at b a B i = orders_at b a B j.
Proof.
move=> ij; rewrite /orders_at (reindex_inj (mulgI (tperm i j))) /=.
apply: eq_bigr => s _; rewrite permM tpermL; congr (nat_of_bool (_ && _)).
have memB l : (tperm i j l \in B) = (l \in B) by case: tpermP => [->|->|].
have preE l : (l \in first_in (tperm i j * s)%g b) = (tperm i j l \in first_in s b).
  by rewrite !inE permM.
apply/eqP/eqP => /setP E; apply/setP => l; last by rewrite preE E memB.
by rewrite -{1}(tpermK i j l) -preE E memB.
Qed.

Lemma sum_orders_at b a B : (a < n)%N -> \sum_j orders_at b a B j = orders_with b B.
Proof.
move=> an; rewrite exchange_big; apply: eq_bigr => s _ /=.
rewrite (bigD1 ((s^-1)%g (Ordinal an))) //= permKV eqxx andbT big1 ?addn0 // => j js.
rewrite (_ : _ == a :> nat = false) ?andbF //; apply/negP => /eqP sa; case/eqP: js.
by rewrite -[j](permK s); congr ((s^-1)%g _); apply: val_inj.
Qed.

Lemma orders_at_out a B j : j \in B -> orders_at a a B j = 0%N.
Proof.
move=> jB; rewrite /orders_at big1 // => s _.
case: eqP => //= E; case: eqP => // sj; move: jB.
by rewrite -E inE sj ltnn.
Qed.

Lemma orders_at_in a B j : j \notin B -> orders_at a.+1 a B j = 0%N.
Proof.
move=> jB; rewrite /orders_at big1 // => s _.
case: eqP => //= E; case: eqP => // sj; move: jB.
by rewrite -E inE sj ltnSn.
Qed.

Lemma orders_with_out B i : i \notin B ->
  orders_with #|B| B = (orders_at #|B| #|B| B i * (n - #|B|))%N.
Proof.
move=> iB; have Bn : (#|B| < n)%N.
  rewrite -[X in (_ < X)%N]card_ord -cardsT; apply: proper_card.
  by rewrite properT; apply: contra iB => /eqP ->; rewrite inE.
rewrite -(sum_orders_at _ _ Bn) (bigID (mem B)) /= big1 ?add0n => [|j jB]; last first.
  exact: orders_at_out.
rewrite (eq_bigr (fun=> orders_at #|B| #|B| B i)) => [|j jB].
  rewrite sum_nat_const mulnC; congr (_ * _); apply: (@addnI #|B|).
  rewrite subnKC ?(ltnW Bn) //; have := cardC (mem B); rewrite card_ord => cE.
  by rewrite -[RHS]cE; congr (_ + _); apply: eq_card => l; rewrite !inE.
by apply: orders_at_sym; rewrite (negPf iB) (negPf jB).
Qed.

Lemma orders_with_in B i a : #|B| = a.+1 -> i \in B ->
  orders_with a.+1 B = (orders_at a.+1 a B i * a.+1)%N.
Proof.
move=> cB iB; have an : (a < n)%N.
  by rewrite -cB -[X in (_ <= X)%N]card_ord max_card.
rewrite -(sum_orders_at _ _ an) (bigID (mem B)) /= [X in (_ + X)%N]big1 ?addn0; last first.
  by move=> j /orders_at_in.
rewrite (eq_bigr (fun=> orders_at a.+1 a B i)) => [|j jB].
  by rewrite sum_nat_const mulnC cB.
by apply: orders_at_sym; rewrite iB jB.
Qed.

Lemma orders_at_next A i : i \notin A ->
  orders_at #|A|.+1 #|A| (i |: A) i = orders_at #|A| #|A| A i.
Proof.
move=> iA; apply: eq_bigr => s _; case: (s i =P #|A| :> nat) => [si|_]; last by rewrite !andbF.
rewrite !andbT; congr nat_of_bool.
have E : first_in s #|A|.+1 = i |: first_in s #|A|.
  apply/setP => j; rewrite !inE ltnS leq_eqVlt -si; congr (_ || _).
  by rewrite -[_ == s i :> nat]/(s j == s i) (inj_eq perm_inj).
rewrite E; apply/eqP/eqP => [E'|-> //].
rewrite -[LHS](@setU1K _ i); last by rewrite inE si ltnn.
by rewrite E' setU1K.
Qed.

Lemma card_orders : #|{perm 'I_n}| = n`!.
Proof. by rewrite -[RHS]card_Sn; apply: eq_card => s; rewrite !inE. Qed.

Lemma orders_withE A : orders_with #|A| A = (#|A|`! * (n - #|A|)`!)%N.
Proof.
move cA : #|A| => a; elim: a A cA => [|a IH] A cA.
  have A0 : A = set0 by apply/eqP; rewrite -cards_eq0 cA.
  rewrite /orders_with (eq_bigr (fun=> 1%N)) => [|s _].
    rewrite sum1_card fact0 mul1n subn0.
    by rewrite -[RHS]card_orders; apply: eq_card => s; rewrite !inE.
  by rewrite A0 (_ : first_in s 0 = set0) ?eqxx //; apply/setP => j; rewrite !inE.
have [i iA] : exists i, i \in A by apply/set0Pn; rewrite -cards_eq0 cA.
pose B := A :\ i; have iB : i \notin B by rewrite !inE eqxx.
have cB : #|B| = a by have := cardsD1 i A; rewrite cA iA => -[].
have AE : A = i |: B by rewrite setD1K.
have an : (a < n)%N by rewrite -cA -[X in (_ <= X)%N]card_ord max_card.
have := orders_with_out iB; rewrite cB (IH _ cB) => /eqP.
have -> : (n - a = (n - a.+1).+1)%N by rewrite subnSK.
rewrite factS mulnCA mulnC eqn_mul2r /= => /eqP at_i.
rewrite (orders_with_in cA iA) {1}AE -cB orders_at_next // cB -at_i factS.
by rewrite mulnC mulnA.
Qed.

Lemma orders_atE A i : i \notin A ->
  orders_at #|A| #|A| A i = (#|A|`! * (n - #|A|.+1)`!)%N.
Proof.
move=> iA; have := orders_with_out iA; rewrite orders_withE.
have An : (#|A| < n)%N.
  rewrite -[X in (_ < X)%N]card_ord -cardsT; apply: proper_card.
  by rewrite properT; apply: contra iA => /eqP ->; rewrite inE.
have -> : (n - #|A| = (n - #|A|.+1).+1)%N by rewrite subnSK.
by rewrite factS mulnCA mulnC => /eqP; rewrite eqn_mul2r /= => /eqP.
Qed.

Lemma earlierE A i : (\sum_s (earlier s i == A) = if i \in A then 0 else orders_at #|A| #|A| A i)%N.
Proof.
case: ifP => iA; last first.
  apply: eq_bigr => s _; congr nat_of_bool; apply/eqP/andP => [<-|[/eqP E /eqP si]].
    by rewrite /earlier card_first_in ?eqxx // ltnW.
  by rewrite /earlier si E.
rewrite big1 // => s _; case: eqP => // E.
by move: iA; rewrite -E inE ltnn.
Qed.

End Counting.

Section AnyOrder.
Variables (R : realFieldType) (L : logarithm R) (n : nat) (S : finType) (m : S).
Notation states := {ffun 'I_n -> S}.
Notation all_m := ([ffun=> m] : states).
Implicit Types (x z : states) (A : {set 'I_n}) (ph : 'I_n -> S -> states -> R).

(** The mean over all orders, each of mass 1/N!. *)
Definition order_mean (f : {perm 'I_n} -> R) : R := (n`!%:R)^-1 * \sum_s f s.

(** x_1 on A, masks elsewhere. *)
Definition shown A x1 : states := [ffun i => if i \in A then x1 i else m].

(** Π_i p̂^i(x_1^i | the tokens before i in the order). *)
Definition order_likelihood ph x1 (s : {perm 'I_n}) : R :=
  \prod_i ph i (x1 i) (shown (earlier s i) x1).

(** Σ_A Σ_{i∉A} κ^|A| (1−κ)^{N−|A|−1} (−log p̂^i(x_1^i | x_1^A)), a polynomial in κ. *)
Definition any_order_density ph x1 : {poly R} :=
  \sum_(A : {set 'I_n}) \sum_(i | i \notin A)
    - L (ph i (x1 i) (shown A x1)) *: reveal_poly R #|A| (n - #|A|.+1).

Lemma card_lt A i : i \notin A -> (#|A| < n)%N.
Proof.
move=> iA; rewrite -[X in (_ < X)%N]card_ord -cardsT; apply: proper_card.
by rewrite properT; apply: contra iA => /eqP ->; rewrite inE.
Qed.

Lemma order_meanE (f : {set 'I_n} -> 'I_n -> R) :
  order_mean (fun s => \sum_i f (earlier s i) i) =
  \sum_(A : {set 'I_n}) \sum_(i | i \notin A) f A i * order_weight R #|A| (n - #|A|.+1).
Proof.
rewrite /order_mean exchange_big mulr_sumr.
transitivity (\sum_i \sum_(A : {set 'I_n})
    (n`!%:R)^-1 * ((\sum_s (earlier s i == A))%:R * f A i)).
  apply: eq_bigr => i _ /=; rewrite -mulr_sumr; congr (_ * _).
  under [RHS]eq_bigr do rewrite natr_sum mulr_suml; rewrite [RHS]exchange_big.
  apply: eq_bigr => s _ /=; rewrite -(sum_delta (earlier s i) (f^~ i)).
  by apply: eq_bigr => A _; rewrite /delta eq_sym.
rewrite exchange_big; apply: eq_bigr => A _ /=; rewrite [RHS]big_mkcond.
apply: eq_bigr => i _; rewrite earlierE; case: ifP => iA; first by rewrite mul0r mulr0.
rewrite orders_atE ?iA // /order_weight -addnS subnSK ?(card_lt (negbT iA)) //.
by rewrite subnKC ?(ltnW (card_lt (negbT iA))) // mulrC [_ * f A i]mulrC -mulrA.
Qed.

(** A sum over the masked path of x_1 is a sum over the sets of revealed positions. *)
Lemma sum_masked_path (kappa : R) x1 (F : states -> R) : (forall i, x1 i != m) ->
  \sum_z conditional_path (fun=> kappa) (all_m, x1) z * F z =
  \sum_(A : {set 'I_n}) kappa ^+ #|A| * (1 - kappa) ^+ (n - #|A|) * F (shown A x1).
Proof.
move=> data; pose supp z : {set 'I_n} := [set i | z i != m].
have suppE A : supp (shown A x1) = A.
  by apply/setP => i; rewrite !inE ffunE; case: ifP => _; rewrite ?data ?eqxx.
rewrite (bigID (fun z => shown (supp z) x1 == z)) /= [X in _ + X]big1 ?addr0; last first.
  move=> z zP; rewrite (_ : conditional_path _ _ z = 0) ?mul0r //; apply/eqP.
  apply: contraNT zP => c_neq0; apply/eqP/ffunP => i; rewrite ffunE inE.
  have [->//|zm] := eqVneq (z i) m; apply/eqP; apply: contraNT c_neq0 => x1z.
  rewrite /conditional_path /product_law (bigD1 i) //= /mixture_token ffunE /delta (negPf zm).
  by rewrite [z i == _]eq_sym (negPf x1z) !mulr0 addr0 mul0r.
rewrite (reindex_onto (fun A => shown A x1) supp) /=; last by move=> z /eqP.
apply: eq_big => [A|A _]; first by rewrite suppE !eqxx.
congr (_ * _); rewrite /conditional_path /product_law (bigID (mem A)) /=; congr (_ * _).
  rewrite -prodr_const; apply: eq_bigr => i iA.
  rewrite /mixture_token !ffunE iA /delta eqxx (negPf (data i)).
  by rewrite mulr0 add0r mulr1.
transitivity (\prod_(i | i \notin A) (1 - kappa)).
  apply: eq_bigr => i /negPf iA; rewrite /mixture_token !ffunE iA /delta eqxx eq_sym.
  by rewrite (negPf (data i)) mulr0 addr0 mulr1.
rewrite prodr_const; congr (_ ^+ _); apply: (@addnI #|A|).
have := cardC (mem A); rewrite card_ord => cE.
have An : (#|A| <= n)%N by rewrite -[X in (_ <= X)%N]card_ord max_card.
by rewrite subnKC // -[RHS]cE; congr (_ + _)%N; apply: eq_card => l; rewrite !inE.
Qed.

(** Revealed tokens are carried over and the mask is no data token. *)
Definition carries_over ph : Prop :=
  (forall i v z, z i != m -> ph i v z = delta (z i) v) /\ (forall i z, z i = m -> ph i m z = 0).

(** L3, the mean of L2 over the masked path at κ < 1 with one κ for all positions is the value of a
    polynomial at κ, times κ̇. The data have no masks; revealed tokens are carried over. *)
Theorem L3_density ph x1 (kappa dkappa : R) : carries_over ph -> (forall i, x1 i != m) ->
  kappa != 1 ->
  \sum_z conditional_path (fun=> kappa) (all_m, x1) z *
    (\sum_i token_generalized_KL L kappa dkappa ((ph i)^~ z) (x1 i) (z i)) =
  (any_order_density ph x1).[kappa] * dkappa.
Proof.
move=> [carry no_mask] data k_neq1; have k1_neq0 : 1 - kappa != 0 by rewrite subr_eq0 eq_sym.
rewrite sum_masked_path // /any_order_density horner_sum mulr_suml; apply: eq_bigr => A _.
rewrite horner_sum mulr_suml mulr_sumr [RHS]big_mkcond; apply: eq_bigr => i _.
rewrite /token_generalized_KL; case: ifP => iA; last first.
  rewrite carry ffunE (negbFE iA) ?data // /delta eqxx subrr mul0r addr0.
  by rewrite ?subrr !mulr0.
have zm : shown A x1 i = m by rewrite ffunE (negPf iA).
rewrite zm no_mask // /delta eq_sym (negPf (data i)) !subr0 mul1r add0r.
rewrite hornerZ /reveal_poly hornerM !horner_exp hornerX hornerD hornerN hornerX hornerC.
have -> : (n - #|A| = (n - #|A|.+1).+1)%N by rewrite subnSK // (card_lt iA).
rewrite exprS; set a := kappa ^+ _; set b := _ ^+ _; set l := L _.
clearbody a b l.
by field.
Qed.

(** L3. The integral over κ of the mean of L2 is the mean over uniformly random orders of the
    negative log-likelihood of x_1, token by token in that order. All masses p̂^i(x_1^i | x_1^A) are
    positive, else both sides are infinite. *)
Theorem L3_random_orders ph x1 :
  (forall i (A : {set _}), i \notin A -> 0 < ph i (x1 i) (shown A x1)) ->
  integral (any_order_density ph x1) = order_mean (fun s => - L (order_likelihood ph x1 s)).
Proof.
move=> ph_gt0; have own (s : {perm 'I_n}) i : i \notin earlier s i by rewrite inE ltnn.
transitivity (order_mean (fun s => \sum_i - L (ph i (x1 i) (shown (earlier s i) x1)))).
  rewrite (order_meanE (fun A i => - L (ph i (x1 i) (shown A x1)))).
  rewrite /any_order_density.
  under eq_bigr do rewrite -[\sum_(i | _) _]scale1r.
  rewrite integral_sum; apply: eq_bigr => A _; rewrite mul1r integral_sum.
  by apply: eq_bigr => i _; rewrite L3_weight.
congr (_ * _); apply: eq_bigr => s _; rewrite sumrN -ln_prod // => i.
exact: ph_gt0 _ _ (own s i).
Qed.

(** L3 for every schedule κ(t), a polynomial with κ(0) = 0 and κ(1) = 1: the integral over t. *)
Theorem L3_schedules ph x1 (kappa : {poly R}) : kappa.[0] = 0 -> kappa.[1] = 1 ->
  carries_over ph -> (forall i, x1 i != m) ->
  (forall i (A : {set _}), i \notin A -> 0 < ph i (x1 i) (shown A x1)) ->
  exists integrand : {poly R},
    (forall t, kappa.[t] != 1 -> integrand.[t] =
      \sum_z conditional_path (fun=> kappa.[t]) (all_m, x1) z *
        (\sum_i token_generalized_KL L kappa.[t] kappa^`().[t] ((ph i)^~ z) (x1 i) (z i))) /\
    integral integrand = order_mean (fun s => - L (order_likelihood ph x1 s)).
Proof.
move=> k0 k1 carry data ph_gt0; exists ((any_order_density ph x1 \Po kappa) * kappa^`()).
split=> [t kt|]; first by rewrite L3_density // hornerM horner_comp.
by rewrite L3_every_schedule // L3_random_orders.
Qed.

Section Bound.
Variables (ph : 'I_n -> S -> states -> R) (x1 : states).
Hypothesis ph_gt0 : forall i (A : {set _}), i \notin A -> 0 < ph i (x1 i) (shown A x1).

Lemma order_likelihood_gt0 s : 0 < order_likelihood ph x1 s.
Proof. by apply: prodr_gt0 => i _; apply: ph_gt0; rewrite inE ltnn. Qed.

Lemma order_mean_law : law (fun _ : {perm 'I_n} => (n`!%:R)^-1 : R).
Proof.
have f_gt0 : 0 < n`!%:R :> R by rewrite ltr0n fact_gt0.
split=> [s|]; first by rewrite invr_ge0 ltW.
by rewrite sumr_const card_orders -[LHS]mulr_natr mulVf // lt0r_neq0.
Qed.

(** L3, the bound: the integral is at least −log of the mean over orders of the probability of x_1.
    That this mean is the law p̂_1(x_1) of the jump process is not proved here. *)
Theorem L3_bound :
  - L (order_mean (order_likelihood ph x1)) <= integral (any_order_density ph x1).
Proof.
rewrite L3_random_orders // /order_mean sumrN mulrN ler_opp2 !mulr_sumr.
by have [_] := jensen L order_mean_law (fun s _ => order_likelihood_gt0 s).
Qed.

(** L3, equality holds iff all orders give x_1 the same probability. *)
Theorem L3_equality :
  integral (any_order_density ph x1) = - L (order_mean (order_likelihood ph x1)) <->
  forall s s', order_likelihood ph x1 s = order_likelihood ph x1 s'.
Proof.
have mean_const a : order_mean (fun=> a) = a.
  by rewrite /order_mean mulr_sumr -mulr_suml order_mean_law.2 mul1r.
rewrite L3_random_orders //; split=> [eq s s'|same]; last first.
  rewrite (_ : order_mean _ = - L (order_likelihood ph x1 1%g)); last first.
    by rewrite -[RHS]mean_const; congr (_ * _); apply: eq_bigr => s _; rewrite (same s 1%g).
  congr (- L _); rewrite -[LHS]mean_const; congr (_ * _).
  by apply: eq_bigr => s _; apply: same.
have all_mean t : order_likelihood ph x1 t = order_mean (order_likelihood ph x1).
  rewrite /order_mean mulr_sumr; apply: (jensen_eq (L := L) order_mean_law).
  - by move=> u _; apply: order_likelihood_gt0.
  - rewrite -!mulr_sumr -/(order_mean _) -ler_opp2 -eq /order_mean.
    by rewrite sumrN mulrN.
  by rewrite invr_gt0 ltr0n fact_gt0.
by rewrite !all_mean.
Qed.

End Bound.
End AnyOrder.

(** Falsifiers: over every real field and for every logarithm, an instance that meets the other
    hypotheses and breaks the statement. *)
Section Falsifiers.
Variables (R : realFieldType) (L : logarithm R).

Local Notation fair := (fair R).
Local Notation half := (half R).

Lemma sum_off_false (f : bool -> R) : \sum_(v | v != false) f v = f true.
Proof. by rewrite (big_pred1 true) => [|[]]. Qed.

(** L2 for masses p̂ of total 2. *)
Theorem L2_token_without_law : exists ph : bool -> R,
  (forall v, 0 < ph v) /\
  generalized_KL L false (fun v => mixture_velocity 0 1 true v false)
    (fun v => posterior_to_velocity 0 1 ph v false) !=
  token_generalized_KL L 0 1 ph true false.
Proof.
exists (fun=> 1); split=> [_|]; first exact: ltr01.
rewrite /generalized_KL sum_off_false /rate_cost /token_generalized_KL.
rewrite /mixture_velocity /posterior_to_velocity /delta /= !subr0 !divr1 !mulr1 divr1 ln1.
by rewrite !mulr0 sub0r addNr addr0 mulr1 eq_sym oppr_eq0 oner_eq0.
Qed.

(** B8's rates where one expert's r̂_k û^k is 0 and r_k u^k is not, with log 0 = 0 as libraries have
    it. *)
Theorem B8_rates_without_support : L 0 = 0 -> exists (r rh : bool -> R) (u uh : bool -> bool -> R),
  [/\ forall k y, 0 <= r k * u k y, forall k y, 0 <= rh k * uh k y &
      \sum_k generalized_KL L false (weighted_rates r u k) (weighted_rates rh uh k) <
      generalized_KL L false (mixture r u) (mixture rh uh)].
Proof.
move=> L0; have half_ge0 := ltW (half_gt0 R).
exists (fun=> 1), (fun=> 1), (fun k _ => k%:R), (fun k _ => if k then 0 else half); split.
- by move=> k y; rewrite mul1r ler0n.
- by move=> k y; rewrite mul1r; case: k.
rewrite big_bool /= /generalized_KL !sum_off_false /rate_cost /weighted_rates /mixture.
rewrite !big_bool /= !mul1r !addr0 !add0r !mul0r invr0 L0 !sub0r oppr0 add0r.
rewrite mulr1n mul1r ltr_add2r -subr_gt0 opprK subrK div1r lnV ?half_gt0 // oppr_gt0.
exact: ln_half.
Qed.

(** Two equal tokens, and a part for each of the two sequences. *)
Definition two_equal (v : bool) : {ffun 'I_2 -> bool} := [ffun=> v].
Definition equal_part (k : bool) : {ffun 'I_2 -> bool} -> R := delta (two_equal k).

Lemma sum_delta_on (T : finType) (P : pred T) (a : T) : \sum_(y | P y) delta a y = (P a)%:R :> R.
Proof.
rewrite big_mkcond -[RHS](sum_delta a (fun y => (P y)%:R)); apply: eq_bigr => y _.
by case: (P y); rewrite ?mulr1 ?mulr0.
Qed.

Lemma agree_two_equal k b : agree_on (before 1) (two_equal b) (two_equal k) = (b == k).
Proof.
apply/agree_onP/eqP => [/(_ ord0 isT)|-> //]; by rewrite !ffunE.
Qed.

Lemma equal_next k b v :
  next_token (equal_part k) (ord_max : 'I_2) (two_equal b) v = ((b == k) && (k == v))%:R.
Proof.
rewrite /next_token /token_given /mass !sum_delta_on agree_two_equal ffunE.
by case: (b == k); rewrite /= ?mul0r ?divr1.
Qed.

(** B10 for a gate that never moves from the masses w: it has a price. *)
Theorem B10_without_bayes_gate :
  exists (w : bool -> R) (qs : bool -> {ffun 'I_2 -> bool} -> R),
  [/\ law w, forall k, law (qs k),
      forall t x, covers (gated_law qs (fun _ _ => w) t x) (next_token (mixture w qs) t x) &
      0 < KL L (mixture w qs) (sequence_law (gated_law qs (fun _ _ => w)))].
Proof.
have fair_laws := fair_law R; have parts_law k : law (equal_part k) by apply: delta_law.
have fair_ge0 := fair_laws.1; have parts_ge0 k : nonneg (equal_part k) by case: (parts_law k).
have cov t x : covers (gated_law equal_part (fun _ _ => fair) t x)
    (next_token (mixture fair equal_part) t x).
  move=> v; rewrite next_mixture //.
  apply: covers_mixture => [|k u|//|k u|k u].
  - exact: gate_given_ge0.
  - exact: token_ge0.
  - exact: token_ge0.
  case: (nonneg_case (token_ge0 (before t) t x (parts_ge0 k) u)) => [q0|q_gt0 _].
    by rewrite /next_token q0 mulr0 ltxx.
  by rewrite mulr_gt0 ?half_gt0.
exists fair, equal_part; split=> //.
rewrite ltNge; apply/negP => /(B10_free fair_laws parts_law _ _ cov).
have causal_fair : causal (fun (_ : 'I_2) (_ : {ffun 'I_2 -> bool}) => fair) by [].
have sub_fair : sub_laws (fun (_ : 'I_2) (_ : {ffun 'I_2 -> bool}) => fair).
  by move=> t x; apply: law_sub.
move=> /(_ causal_fair sub_fair ord_max (two_equal true) true).
rewrite next_mixture // /gated_law /routed /mixture !big_bool /exact_experts !equal_next /=.
rewrite !mulr0 !mulr1 !addr0 /prefix_gate /gate_given /gate /mixture !big_bool.
rewrite /mass !sum_delta_on !agree_two_equal /= !mulr1 !mulr0 addr0 /equal_part /delta eqxx.
rewrite [two_equal true == two_equal false](_ : _ = false); last first.
  by apply/eqP => /ffunP /(_ ord0); rewrite !ffunE.
rewrite mulr1 mulr0 addr0 divff ?lt0r_neq0 ?half_gt0 // => /(_ isT) /eqP.
by rewrite lt_eqF // half_lt1.
Qed.

(** One position, two data tokens; half of the mass is revealed in each of two steps, at first by a
    model that is sure and then by one that is not. *)
Definition one_place (v : option bool) : {ffun unit -> option bool} := [ffun=> v].
Definition two_steps (t : nat) (i : unit) : R :=
  if t is t'.+1 then if t' is 0%N then half else 1 else 0.
Definition changing_tokens (t : nat) (i : unit) (v : option bool)
    (z : {ffun unit -> option bool}) : R :=
  if v is Some b then if t is 0%N then b%:R else half else 0.

Lemma sum_one_place (f : {ffun unit -> option bool} -> R) :
  \sum_z f z = f (one_place None) + (f (one_place (Some true)) + f (one_place (Some false))).
Proof.
rewrite (reindex one_place) /=; last first.
  exists (fun z : {ffun unit -> option bool} => z tt) => [v _|z _]; first by rewrite ffunE.
  by apply/ffunP => -[]; rewrite ffunE.
rewrite (bigD1 None) //= (bigD1 (Some true)) //= (bigD1 (Some false)) //= big1 ?addr0 //.
by case=> [[]|].
Qed.

Lemma one_place_inj u v : (one_place u == one_place v) = (u == v).
Proof. by apply/eqP/eqP => [/ffunP /(_ tt)|-> //]; rewrite !ffunE. Qed.

Lemma prod_one (f : unit -> R) : \prod_i f i = f tt.
Proof. by rewrite (big_pred1 tt) => [|[]]. Qed.

Lemma sum_one (f : unit -> R) : \sum_i f i = f tt.
Proof. by rewrite (big_pred1 tt) => [|[]]. Qed.

Lemma two_step_sizes : step_size 0 half = half /\ step_size half 1 = 1.
Proof.
rewrite /step_size eq_sym oner_eq0 subr0 subr0 divr1; split=> //.
rewrite lt_eqF ?half_lt1 // divff // subr_eq0 gt_eqF //; exact: half_lt1.
Qed.

(** L5 with equality, for a position that is revealed in parts: the bound is strict. That steps move
    one position at a time is not enough for equality; each must reveal it whole. *)
Theorem L5_equality_without_whole_steps : exists (kappa : nat -> unit -> R) phat x0 x1,
  [/\ grid kappa 2 (x0, x1), forall i, x1 i != None :> option bool, forall i, x0 i = None,
      forall t i z, law (fun v => phat t i v z) &
      - L (run (model_steps None kappa phat) (delta x0) 2 x1) <
      grid_loss L None kappa phat 2 (x0, x1)].
Proof.
have [size0 size1] := two_step_sizes; have half_ge0 := ltW (half_gt0 R).
have rest : 1 - half = half by rewrite -[X in X - _](half_add R) addrK.
exists two_steps, changing_tokens, (one_place None), (one_place (Some true)); split.
- split=> [//|[|[|//]] i _|i|i _] /=; by rewrite ?lexx ?half_ge0 ?(ltW (half_lt1 R)).
- by move=> i; rewrite ffunE.
- by move=> i; rewrite ffunE.
- move=> t i z; split=> [[b|]|] //=; first by case: t => [|t]; rewrite ?ler0n ?half_ge0.
  rewrite (bigD1 None) //= (bigD1 (Some true)) //= (bigD1 (Some false)) //= big1.
    by case: t => [|t]; rewrite /= ?(add0r, addr0) ?half_add.
  by case=> [[]|].
have -> : grid_loss L None two_steps changing_tokens 2 (one_place None, one_place (Some true)) =
    - (half * L half).
  rewrite /grid_loss !big_ord_recl big_ord0 !sum_one /= size0 size1 !sum_one_place !ffunE /=.
  rewrite /conditional_path /product_law !prod_one /= !ffunE /mixture_token /delta /=.
  by rewrite ln1 rest; ring.
have -> : run (model_steps None two_steps changing_tokens) (delta (one_place None)) 2
    (one_place (Some true)) = 3%:R * (half * half).
  transitivity (half * (1 - half) + half * (half + half)); last by rewrite rest; ring.
  rewrite /= /push_forward.
  under eq_bigr => z _ do [under eq_bigr do rewrite mulrC; rewrite sum_delta].
  rewrite sum_one_place /model_steps /step_kernel /product_law !prod_one /carry_over_velocity.
  by rewrite !ffunE /= size0 size1 /delta /= half_add; ring.
have half_gt0' := half_gt0 R; have x_gt0 : 0 < 3%:R * (half * half).
  by rewrite !mulr_gt0 ?ltr0n.
have le : L half < L (3%:R * (half * half)) + L (3%:R * (half * half)).
  have xx_gt0 := mulr_gt0 x_gt0 x_gt0; rewrite -lnM // -subr_lt0 -(ln_div L) //.
  apply: ln_lt0; first exact: divr_gt0.
  rewrite ltr_pdivr_mulr // mul1r -subr_gt0.
  rewrite (_ : _ - _ = half * half * (half * half)) ?mulr_gt0 //.
  by rewrite /half; field.
move: le; rewrite ltr_opp2; set l := L (3%:R * _) => le.
have -> : l = half * (l + l) by rewrite mulrDr -mulrDl half_add mul1r.
by rewrite ltr_pmul2l.
Qed.

End Falsifiers.
