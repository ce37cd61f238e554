(** Entropies and divergences on finite types: what a mixture of experts and a router cost.

    The logarithm is a record of two facts, so that no analysis is needed: every theorem holds for
    every function with them. The natural logarithm on the real numbers is one; on the rational
    numbers there is none. Where p(x) = 0 a term p(x) log(...) is 0, whatever the logarithm is
    there; that q(x) > 0 wherever p(x) > 0 is a hypothesis, for without it a divergence is
    infinite. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Record logarithm (R : realFieldType) := {
  ln :> R -> R;
  lnM : forall x y, 0 < x -> 0 < y -> ln (x * y) = ln x + ln y;
  ln_le : forall x, 0 < x -> ln x <= x - 1 }.

Section Logarithm.
Variables (R : realFieldType) (L : logarithm R).
Implicit Types x y : R.

Lemma ln1 : L 1 = 0.
Proof.
have := lnM L (@ltr01 R) (@ltr01 R); rewrite mulr1 => /eqP.
by rewrite -subr_eq0 opprD addrA subrr add0r oppr_eq0 => /eqP.
Qed.

Lemma lnV x : 0 < x -> L x^-1 = - L x.
Proof.
move=> x_gt0; apply/eqP; rewrite -addr_eq0 -lnM ?invr_gt0 //.
by rewrite mulVf ?lt0r_neq0 // ln1.
Qed.

Lemma ln_div x y : 0 < x -> 0 < y -> L (x / y) = L x - L y.
Proof. by move=> x_gt0 y_gt0; rewrite lnM ?invr_gt0 // lnV. Qed.

Lemma ln_ge x : 0 < x -> 1 - x^-1 <= L x.
Proof.
move=> x_gt0; rewrite -[L x]opprK -lnV // -opprB ler_opp2.
by apply: ln_le; rewrite invr_gt0.
Qed.

Lemma ln_le0 x : 0 < x -> x <= 1 -> L x <= 0.
Proof. by move=> x_gt0 x_le1; apply: le_trans (ln_le L x_gt0) _; rewrite subr_le0. Qed.

Lemma ln_homo x y : 0 < x -> x <= y -> L x <= L y.
Proof.
move=> x_gt0 xy; have y_gt0 := lt_le_trans x_gt0 xy.
rewrite -subr_le0 -ln_div // ln_le0 ?divr_gt0 //.
by rewrite ler_pdivr_mulr // mul1r.
Qed.

(** The inequality is strict off 1: split x into (1 + x)/2 and its cofactor. *)
Lemma ln_lt x : 0 < x -> x != 1 -> L x < x - 1.
Proof.
move=> x_gt0 x_neq1; have y_gt0 : 0 < 1 + x by rewrite addr_gt0 ?ltr01.
have half_gt0 : 0 < (1 + x) / 2%:R by rewrite divr_gt0 ?ltr0n.
have rest_gt0 : 0 < x / ((1 + x) / 2%:R) by rewrite divr_gt0.
have -> : L x = L (x / ((1 + x) / 2%:R)) + L ((1 + x) / 2%:R).
  by rewrite -lnM // divfK // lt0r_neq0.
apply: le_lt_trans (ler_add (ln_le L rest_gt0) (ln_le L half_gt0)) _.
rewrite -subr_gt0.
have -> : x - 1 - (x / ((1 + x) / 2%:R) - 1 + ((1 + x) / 2%:R - 1))
    = (x - 1) ^+ 2 / (2%:R * (1 + x)).
  by field; rewrite lt0r_neq0.
apply: divr_gt0; last by rewrite mulr_gt0 ?ltr0n.
by rewrite lt_neqAle sqr_ge0 andbT eq_sym expf_eq0 /= subr_eq0.
Qed.

Lemma ln_lt0 x : 0 < x -> x < 1 -> L x < 0.
Proof.
move=> x_gt0 x_lt1; apply: lt_le_trans (ln_lt x_gt0 _) _; first by rewrite lt_eqF.
by rewrite subr_le0 ltW.
Qed.

Lemma ln_prod (I : finType) (f : I -> R) :
  (forall i, 0 < f i) -> L (\prod_i f i) = \sum_i L (f i).
Proof.
move=> f_gt0; have : 0 < \prod_i f i /\ L (\prod_i f i) = \sum_i L (f i); last by case.
elim/big_rec2: _ => [|i a b _ [b_gt0 eq_ab]]; first by rewrite ltr01 ln1.
by split; [rewrite mulr_gt0 | rewrite lnM // eq_ab].
Qed.

End Logarithm.

Section Divergences.
Variables (R : realFieldType) (L : logarithm R).

(** KL(p || q) = Σ_x p(x) log(p(x) / q(x)). *)
Definition KL (X : finType) (p q : X -> R) : R := \sum_x p x * L (p x / q x).

(** H(p) = −Σ_x p(x) log p(x). *)
Definition entropy (X : finType) (p : X -> R) : R := - \sum_x p x * L (p x).

(** E_q[−log q̂(X)], the mean negative log-likelihood. *)
Definition cross_entropy (X : finType) (q qh : X -> R) : R := - \sum_x q x * L (qh x).

(** q > 0 wherever p > 0: KL(p || q) is finite. *)
Definition covers (X : finType) (q p : X -> R) := forall x, 0 < p x -> 0 < q x.

Section Gibbs.
Variable X : finType.
Implicit Types p q : X -> R.

Lemma nonneg_case a : 0 <= a -> a = 0 \/ 0 < a :> R.
Proof. by rewrite le_eqVlt => /orP [/eqP <-|]; [left | right]. Qed.

Lemma KL_term p q x : nonneg p -> nonneg q -> covers q p ->
  p x - q x <= p x * L (p x / q x).
Proof.
move=> p_ge0 q_ge0 q_p; case: (nonneg_case (p_ge0 x)) => [->|p_gt0].
  by rewrite mul0r sub0r oppr_le0.
have q_gt0 := q_p x p_gt0.
have := ln_ge L (divr_gt0 p_gt0 q_gt0); rewrite invf_div -(ler_pmul2l p_gt0).
by apply: le_trans; rewrite mulrBr mulr1 mulrCA mulfV ?mulr1 // lt0r_neq0.
Qed.

(** Σ p − Σ q ≤ KL(p || q), for masses that need not be laws. *)
Lemma KL_ge p q : nonneg p -> nonneg q -> covers q p ->
  \sum_x p x - \sum_x q x <= KL p q.
Proof. by move=> *; rewrite -sumrB; apply: ler_sum => x _; apply: KL_term. Qed.

(** Gibbs: KL(p || q) ≥ 0 for a law p and masses q of total at most 1. *)
Lemma gibbs p q : law p -> nonneg q -> \sum_x q x <= 1 -> covers q p -> 0 <= KL p q.
Proof.
move=> [p_ge0 p1] q_ge0 q1 q_p; apply: le_trans (KL_ge p_ge0 q_ge0 q_p).
by rewrite p1 subr_ge0.
Qed.

(** KL(p || q) = 0 only if p = q. *)
Lemma gibbs_eq p q : law p -> nonneg q -> \sum_x q x <= 1 -> covers q p -> KL p q <= 0 ->
  forall x, p x = q x.
Proof.
move=> [p_ge0 p1] q_ge0 q1 q_p KL_le0 x.
pose f x := p x * L (p x / q x) - (p x - q x).
have f_ge0 y : 0 <= f y by rewrite subr_ge0 KL_term.
have f0 : \sum_y f y = 0.
  apply/eqP; rewrite eq_le sumr_ge0 ?andbT => [|y _]; last exact: f_ge0.
  rewrite sumrB sumrB p1 subr_le0; apply: le_trans KL_le0 _.
  by rewrite subr_ge0.
have := sum_nonneg_eq0 f_ge0 f0 x; rewrite /f.
case: (nonneg_case (p_ge0 x)) => [->|p_gt0].
  by rewrite mul0r !sub0r opprK.
have q_gt0 := q_p x p_gt0; have [//|pq] := eqVneq (p x) (q x) => /eqP.
rewrite gt_eqF // subr_gt0 -[L _]opprK -lnV ?divr_gt0 // invf_div.
have qp : q x / p x != 1.
  by apply: contra pq => /eqP qp1; rewrite -[q x](divfK (lt0r_neq0 p_gt0)) qp1 mul1r.
rewrite mulrN ltr_oppr opprB.
have -> : q x - p x = p x * (q x / p x - 1) by field; rewrite lt0r_neq0.
by rewrite ltr_pmul2l // ln_lt // divr_gt0.
Qed.

End Gibbs.

(** Dividing both sides of a divergence by A and B moves log(A/B) out of it. *)
Lemma KL_scale (X : finType) (a b : X -> R) A B :
  nonneg a -> covers b a -> 0 < A -> 0 < B ->
  KL a b = (\sum_x a x) * L (A / B) + A * KL (fun x => a x / A) (fun x => b x / B).
Proof.
move=> a_ge0 b_a A_gt0 B_gt0; rewrite /KL mulr_suml mulr_sumr -big_split /=.
apply: eq_bigr => x _; case: (nonneg_case (a_ge0 x)) => [->|a_gt0].
  by rewrite !mul0r mulr0 addr0.
have b_gt0 := b_a x a_gt0.
rewrite mulrA mulrCA mulfV ?lt0r_neq0 // mulr1 -mulrDr -lnM ?divr_gt0 //.
by congr (_ * L _); field; rewrite !lt0r_neq0.
Qed.

End Divergences.

Section Mixtures.
Variables (R : realFieldType) (L : logarithm R) (K X : finType).
Implicit Types (w wh : K -> R) (q qh : K -> X -> R).

Lemma mixture_ge_term w q k x : nonneg w -> (forall k, nonneg (q k)) ->
  w k * q k x <= mixture w q x.
Proof.
move=> w_ge0 q_ge0; apply: (sum_ge_term (f := fun k => w k * q k x)) => j.
by rewrite mulr_ge0.
Qed.

Lemma factors_gt0 (a b : R) : 0 <= a -> 0 <= b -> 0 < a * b -> 0 < a /\ 0 < b.
Proof.
move=> a_ge0 b_ge0; case: (nonneg_case a_ge0) => [->|a_gt0]; first by rewrite mul0r ltxx.
by rewrite pmulr_rgt0.
Qed.

Lemma sum_mixture w q : (forall k, \sum_x q k x = 1) -> \sum_x mixture w q x = \sum_k w k.
Proof.
move=> q1; rewrite /mixture exchange_big; apply: eq_bigr => k _ /=.
by rewrite -mulr_sumr q1 mulr1.
Qed.

Lemma gate_le1 w q x k : nonneg w -> (forall k, nonneg (q k)) -> gate w q x k <= 1.
Proof.
move=> w_ge0 q_ge0; have := mixture_ge0 w_ge0 q_ge0 x.
case/nonneg_case => [q0|q_gt0]; first by rewrite /gate q0 invr0 mulr0 ler01.
by rewrite ler_pdivr_mulr // mul1r mixture_ge_term.
Qed.

(** B1. −log Σ_j ŵ_j p̂_j(x) = −log ŵ_k − log p̂_k(x) + log r̂_k(x), for nonnegative masses and
    experts and every k with ŵ_k p̂_k(x) > 0. Neither need be laws. *)
Theorem B1 w q k x : nonneg w -> (forall k, nonneg (q k)) -> 0 < w k * q k x ->
  - L (mixture w q x) = - L (w k) - L (q k x) + L (gate w q x k).
Proof.
move=> w_ge0 q_ge0 wq_gt0; have [w_gt0 q_gt0] := factors_gt0 (w_ge0 k) (q_ge0 k x) wq_gt0.
have m_gt0 := lt_le_trans wq_gt0 (mixture_ge_term k x w_ge0 q_ge0).
by rewrite ln_div // lnM //; ring.
Qed.

(** B1, second sentence: sending x to expert k alone costs log ŵ_k − log r̂_k(x) more. *)
Theorem B1_cost w q k x : nonneg w -> (forall k, nonneg (q k)) -> 0 < w k * q k x ->
  - L (q k x) - - L (mixture w q x) = L (w k) - L (gate w q x k).
Proof. by move=> w_ge0 q_ge0 wq_gt0; rewrite (B1 w_ge0 q_ge0 wq_gt0); ring. Qed.

(** B11. −log Σ_j ŵ_j p̂_j(x) ≤ −log ŵ_k − log p̂_k(x) for every k with ŵ_k p̂_k(x) > 0; for the
    others the right side is infinite, so this is the minimum over k. *)
Theorem B11 w q k x : nonneg w -> (forall k, nonneg (q k)) -> 0 < w k * q k x ->
  - L (mixture w q x) <= - L (w k) - L (q k x).
Proof.
move=> w_ge0 q_ge0 wq_gt0; rewrite (B1 w_ge0 q_ge0 wq_gt0) ger_addl ln_le0 ?gate_le1 //.
by rewrite divr_gt0 // (lt_le_trans wq_gt0) ?mixture_ge_term.
Qed.

(** The parts q_k are laws wherever w_k > 0, and nonnegative everywhere. *)
Definition parts w q := forall k, nonneg (q k) /\ (0 < w k -> \sum_x q k x = 1).

(** The divergence of the joint laws of part and x. *)
Definition joint_KL w q wh qh : R :=
  \sum_k \sum_x w k * q k x * L (w k * q k x / (wh k * qh k x)).

(** E_q KL(r(X) || r̂(X)), the price of the learned router. *)
Definition gate_KL w q wh qh : R :=
  \sum_x mixture w q x * KL L (gate w q x) (gate wh qh x).

(** Σ_k w_k KL(q_k || q̂_k). *)
Definition experts_KL w q qh : R := \sum_k w k * KL L (q k) (qh k).

(** ŵ_k > 0 and q̂_k(x) > 0 wherever w_k q_k(x) > 0. *)
Definition covers_parts w q wh qh := forall k x, 0 < w k * q k x -> 0 < wh k * qh k x.

Lemma covers_mixture w q wh qh : nonneg w -> (forall k, nonneg (q k)) ->
  nonneg wh -> (forall k, nonneg (qh k)) -> covers_parts w q wh qh ->
  covers (mixture wh qh) (mixture w q).
Proof.
move=> w_ge0 q_ge0 wh_ge0 qh_ge0 cov x q_gt0.
have [k wq_gt0|none] := pickP (fun k => 0 < w k * q k x).
  exact: lt_le_trans (cov k x wq_gt0) (mixture_ge_term k x wh_ge0 qh_ge0).
move: q_gt0; rewrite /mixture big1 ?ltxx // => k _.
case: (nonneg_case (mulr_ge0 (w_ge0 k) (q_ge0 k x))) => // wq_gt0.
by have := none k; rewrite wq_gt0.
Qed.

(** The chain rule, x first. *)
Lemma joint_KL_gates w q wh qh : nonneg w -> (forall k, nonneg (q k)) ->
  nonneg wh -> (forall k, nonneg (qh k)) -> covers_parts w q wh qh ->
  joint_KL w q wh qh = KL L (mixture w q) (mixture wh qh) + gate_KL w q wh qh.
Proof.
move=> w_ge0 q_ge0 wh_ge0 qh_ge0 cov; rewrite /joint_KL exchange_big -big_split /=.
apply: eq_bigr => x _; have a_ge0 k : 0 <= w k * q k x by rewrite mulr_ge0.
case: (nonneg_case (mixture_ge0 w_ge0 q_ge0 x)) => [q0|q_gt0].
  rewrite q0 !mul0r addr0 big1 // => k _.
  by rewrite (sum_nonneg_eq0 a_ge0 q0) mul0r.
have qh_gt0 := covers_mixture w_ge0 q_ge0 wh_ge0 qh_ge0 cov q_gt0.
exact: (KL_scale L a_ge0 (cov^~ x) q_gt0 qh_gt0).
Qed.

(** The chain rule, the part first. *)
Lemma joint_KL_experts w q wh qh : nonneg w -> parts w q ->
  nonneg wh -> (forall k, nonneg (qh k)) -> covers_parts w q wh qh ->
  joint_KL w q wh qh = experts_KL w q qh + KL L w wh.
Proof.
move=> w_ge0 qP wh_ge0 qh_ge0 cov; rewrite -big_split; apply: eq_bigr => k _ /=.
have [q_ge0 q1] := qP k.
have -> : w k * L (w k / wh k) = \sum_x q k x * (w k * L (w k / wh k)).
  rewrite -mulr_suml; case: (nonneg_case (w_ge0 k)) => [->|/q1 ->]; last by rewrite mul1r.
  by rewrite mul0r mulr0.
rewrite mulr_sumr -big_split; apply: eq_bigr => x _ /=.
have -> : w k * (q k x * L (q k x / qh k x)) + q k x * (w k * L (w k / wh k)) =
    w k * q k x * (L (q k x / qh k x) + L (w k / wh k)) by ring.
case: (nonneg_case (mulr_ge0 (w_ge0 k) (q_ge0 x))) => [wq0|wq_gt0].
  by rewrite wq0 !mul0r.
have [w_gt0 q_gt0] := factors_gt0 (w_ge0 k) (q_ge0 x) wq_gt0.
have [wh_gt0 qh_gt0] := factors_gt0 (wh_ge0 k) (qh_ge0 k x) (cov k x wq_gt0).
by rewrite !ln_div ?mulr_gt0 // !lnM //; ring.
Qed.

(** B2. KL(q || q̂) + E_q KL(r || r̂) = Σ_k w_k KL(q_k || q̂_k) + KL(w || ŵ) for q̂ = Σ_k ŵ_k q̂_k
    and its own posterior r̂: both sides are the divergence of the joint laws. The parts q_k are
    laws (where w_k > 0); the masses w, ŵ and the experts q̂_k are nonnegative, and ŵ_k q̂_k(x) > 0
    wherever w_k q_k(x) > 0. That w, ŵ and q̂_k are laws is not needed. *)
Theorem B2 w q wh qh : nonneg w -> parts w q ->
  nonneg wh -> (forall k, nonneg (qh k)) -> covers_parts w q wh qh ->
  KL L (mixture w q) (mixture wh qh) + gate_KL w q wh qh = experts_KL w q qh + KL L w wh.
Proof.
move=> w_ge0 qP wh_ge0 qh_ge0 cov; have q_ge0 k := (qP k).1.
by rewrite -joint_KL_gates // joint_KL_experts.
Qed.

Lemma gate_law w q x : nonneg w -> (forall k, nonneg (q k)) -> 0 < mixture w q x ->
  law (gate w q x).
Proof. by move=> w_ge0 q_ge0 m_gt0; split; [exact: gate_ge0 | exact: sum_gate]. Qed.

Lemma gate_KL_ge0 w q wh qh : nonneg w -> (forall k, nonneg (q k)) ->
  nonneg wh -> (forall k, nonneg (qh k)) -> covers_parts w q wh qh -> 0 <= gate_KL w q wh qh.
Proof.
move=> w_ge0 q_ge0 wh_ge0 qh_ge0 cov; apply: sumr_ge0 => x _.
case: (nonneg_case (mixture_ge0 w_ge0 q_ge0 x)) => [->|q_gt0]; first by rewrite mul0r.
have qh_gt0 := covers_mixture w_ge0 q_ge0 wh_ge0 qh_ge0 cov q_gt0.
apply: mulr_ge0; first exact: ltW.
apply: gibbs; first exact: gate_law.
- exact: gate_ge0.
- by rewrite sum_gate.
move=> k; rewrite /gate => r_gt0; rewrite divr_gt0 // cov //.
by move: r_gt0; rewrite pmulr_lgt0 // invr_gt0.
Qed.

(** B3. With the Bayes gate KL(q || q̂) ≤ Σ_k w_k KL(q_k || q̂_k) + KL(w || ŵ), under the hypotheses
    of B2. *)
Theorem B3 w q wh qh : nonneg w -> parts w q ->
  nonneg wh -> (forall k, nonneg (qh k)) -> covers_parts w q wh qh ->
  KL L (mixture w q) (mixture wh qh) <= experts_KL w q qh + KL L w wh.
Proof.
move=> w_ge0 qP wh_ge0 qh_ge0 cov; rewrite -B2 // ler_addl gate_KL_ge0 // => k.
by case: (qP k).
Qed.

End Mixtures.

Section Bregman.
Variables (R : realFieldType) (K S : finType).

(** D(a, b) = φ(a) − φ(b) − ⟨∇φ(b), a − b⟩. *)
Definition bregman (phi : (S -> R) -> R) (grad : (S -> R) -> S -> R) (a b : S -> R) : R :=
  phi a - phi b - \sum_s grad b s * (a s - b s).

(** L4. Σ_k r_k D(u_k, v) = D(Σ_k r_k u_k, v) + Σ_k r_k D(u_k, Σ_j r_j u_j), the targets in the
    first argument. Only Σ_k r_k = 1 is needed: φ and the field in the place of its gradient may be
    any functions, and r may be negative. *)
Theorem L4 phi grad (r : K -> R) (u : K -> S -> R) (v : S -> R) : \sum_k r k = 1 ->
  \sum_k r k * bregman phi grad (u k) v =
  bregman phi grad (mixture r u) v + \sum_k r k * bregman phi grad (u k) (mixture r u).
Proof.
move=> r1; rewrite /bregman.
have inner b : \sum_k r k * (phi (u k) - phi b - \sum_s grad b s * (u k s - b s)) =
    \sum_k r k * phi (u k) - phi b - \sum_s grad b s * (mixture r u s - b s).
  have -> : \sum_s grad b s * (mixture r u s - b s) =
      \sum_k r k * \sum_s grad b s * (u k s - b s).
    under [RHS]eq_bigr do rewrite mulr_sumr.
    rewrite exchange_big; apply: eq_bigr => s _ /=.
    have -> : b s = \sum_k r k * b s by rewrite -mulr_suml r1 mul1r.
    rewrite /mixture -sumrB mulr_sumr; apply: eq_bigr => k _.
    by rewrite -mulr_suml r1; ring.
  have -> : phi b = \sum_k r k * phi b by rewrite -mulr_suml r1 mul1r.
  rewrite -!sumrB; apply: eq_bigr => k _.
  by rewrite -mulr_suml r1; ring.
rewrite !inner [X in _ = _ + (_ - X)]big1 => [|s _]; last by rewrite subrr mulr0.
by ring.
Qed.

End Bregman.

Section CrossEntropy.
Variables (R : realFieldType) (L : logarithm R).

(** KL(p || q) = E_p[−log q] − H(p). *)
Lemma KL_cross_entropy (X : finType) (p q : X -> R) : nonneg p -> covers q p ->
  KL L p q = cross_entropy L p q - entropy L p.
Proof.
move=> p_ge0 q_p; rewrite /cross_entropy /entropy opprK addrC -sumrB.
apply: eq_bigr => x _; case: (nonneg_case (p_ge0 x)) => [->|p_gt0]; first by rewrite !mul0r subrr.
by rewrite ln_div ?q_p // mulrBr.
Qed.

Section Information.
Variables (K X : finType).

(** I(X; K) = E log[ P(x, k) / (P(x) P(k)) ], for any joint masses. *)
Definition information (p : X -> K -> R) : R :=
  \sum_x \sum_k p x k * L (p x k / ((\sum_j p x j) * \sum_y p y k)).

(** I(X; K) for the joint law w_k q_k(x) of a sequence and its part. *)
Definition part_information (w : K -> R) (q : K -> X -> R) : R :=
  information (fun x k => w k * q k x).

(** I(X; K) = Σ_k w_k KL(q_k || q). *)
Lemma part_informationE (w : K -> R) (q : K -> X -> R) : nonneg w -> parts w q ->
  part_information w q = experts_KL L w q (fun=> mixture w q).
Proof.
move=> w_ge0 qP; rewrite /part_information /information exchange_big /experts_KL.
apply: eq_bigr => k _ /=; have [q_ge0 q1] := qP k.
rewrite mulr_sumr; apply: eq_bigr => x _; rewrite -mulr_sumr [RHS]mulrA.
case: (nonneg_case (mulr_ge0 (w_ge0 k) (q_ge0 x))) => [->|wq_gt0]; first by rewrite !mul0r.
have [w_gt0 q_gt0] := factors_gt0 (w_ge0 k) (q_ge0 x) wq_gt0; rewrite q1 // mulr1.
congr (_ * L _); rewrite -/(mixture w q x) [mixture w q x * _]mulrC.
by rewrite -mulf_div mulfV ?mul1r // lt0r_neq0.
Qed.

(** D10, first half. H(X) = Σ_k w_k H(X | k) + I(X; K). The parts are laws (where w_k > 0); the
    masses w need not sum to 1. *)
Theorem D10_entropy (w : K -> R) (q : K -> X -> R) : nonneg w -> parts w q ->
  entropy L (mixture w q) = \sum_k w k * entropy L (q k) + part_information w q.
Proof.
move=> w_ge0 qP; have q_ge0 k := (qP k).1; rewrite part_informationE // -big_split /=.
have -> : entropy L (mixture w q) = \sum_k w k * cross_entropy L (q k) (mixture w q).
  rewrite /entropy /cross_entropy; under [RHS]eq_bigr do rewrite mulrN mulr_sumr.
  rewrite sumrN exchange_big; congr (- _); apply: eq_bigr => x _ /=.
  by rewrite {1}/mixture mulr_suml; apply: eq_bigr => k _; rewrite mulrA.
apply: eq_bigr => k _; rewrite -mulrDr; case: (nonneg_case (w_ge0 k)) => [->|w_gt0].
  by rewrite !mul0r.
congr (_ * _); rewrite KL_cross_entropy; [by rewrite addrC subrK | exact: q_ge0 |].
move=> x q_gt0; apply: lt_le_trans (mixture_ge_term k x w_ge0 q_ge0).
by rewrite mulr_gt0.
Qed.

End Information.

Section Router.
Variables (K Z : finType) (w : K -> R) (p : K -> Z -> R).
Implicit Type rho : Z -> K -> R.

(** E[−log ρ(K | Z)], the cross-entropy of a router on the pairs of state and part. *)
Definition router_loss rho : R := - \sum_z \sum_k w k * p k z * L (rho z k).

(** E KL(r(Z) || ρ(Z)). *)
Definition router_excess rho : R := \sum_z mixture w p z * KL L (gate w p z) (rho z).

Hypotheses (w_ge0 : nonneg w) (p_ge0 : forall k, nonneg (p k)).

Lemma router_lossE rho :
  router_loss rho = \sum_z mixture w p z * cross_entropy L (gate w p z) (rho z).
Proof.
rewrite /router_loss -sumrN; apply: eq_bigr => z _.
rewrite /cross_entropy mulrN mulr_sumr; congr (- _); apply: eq_bigr => k _.
by rewrite mulrA gateE.
Qed.

Lemma gate_gt0 z k : 0 < mixture w p z -> 0 < gate w p z k -> 0 < w k * p k z.
Proof. by move=> m_gt0 r_gt0; rewrite -gateE // mulr_gt0. Qed.

(** D11, excess. The cross-entropy of a router ρ exceeds that of the posterior r by
    E KL(r(Z) || ρ(Z)). It is positive where w_k p_k(z) is. *)
Theorem D11_excess rho : (forall z k, 0 < w k * p k z -> 0 < rho z k) ->
  router_loss rho - router_loss (gate w p) = router_excess rho.
Proof.
move=> rho_gt0; rewrite !router_lossE -sumrB; apply: eq_bigr => z _.
case: (nonneg_case (mixture_ge0 w_ge0 p_ge0 z)) => [->|m_gt0]; first by rewrite !mul0r subrr.
rewrite -mulrBr KL_cross_entropy //; first exact: gate_ge0.
by move=> k r_gt0; apply: rho_gt0; apply: gate_gt0.
Qed.

(** The router gives a law over the experts (or less), positive where w_k p_k(z) is. *)
Definition router rho := (forall z, nonneg (rho z)) /\ (forall z, \sum_k rho z k <= 1) /\
  (forall z k, 0 < w k * p k z -> 0 < rho z k).

Lemma router_term_ge0 rho z : router rho ->
  0 <= mixture w p z * KL L (gate w p z) (rho z).
Proof.
move=> [rho_ge0 [rho1 rho_gt0]].
case: (nonneg_case (mixture_ge0 w_ge0 p_ge0 z)) => [->|m_gt0]; first by rewrite mul0r.
apply: mulr_ge0; first exact: ltW.
apply: gibbs (gate_law w_ge0 p_ge0 m_gt0) (rho_ge0 z) (rho1 z) _ => k r_gt0.
exact/rho_gt0/gate_gt0.
Qed.

(** D11. The minimizer over all functions of the state is r_k(z). *)
Theorem D11 rho : router rho -> router_loss (gate w p) <= router_loss rho.
Proof.
move=> rhoP; rewrite -subr_ge0 D11_excess; last by case: rhoP => _ [].
by apply: sumr_ge0 => z _; apply: router_term_ge0.
Qed.

(** D11, the only one where p(z) > 0. *)
Theorem D11_unique rho : router rho -> router_loss rho <= router_loss (gate w p) ->
  forall z k, 0 < mixture w p z -> rho z k = gate w p z k.
Proof.
move=> rhoP; rewrite -subr_le0 D11_excess; last by case: rhoP => _ [].
move=> excess_le0 z k m_gt0; have terms_ge0 y := router_term_ge0 y rhoP.
have [rho_ge0 [rho1 rho_gt0]] := rhoP.
have excess0 : router_excess rho = 0.
  by apply/eqP; rewrite eq_le excess_le0 sumr_ge0 // => y _; apply: terms_ge0.
symmetry; apply: (@gibbs_eq R L K); [exact: gate_law|exact: rho_ge0|exact: rho1| |].
  by move=> j r_gt0; apply/rho_gt0/gate_gt0.
have /eqP := sum_nonneg_eq0 terms_ge0 excess0 z.
by rewrite mulf_eq0 gt_eqF //= => /eqP ->.
Qed.

End Router.

Section TokenLoss.
Variables (H Z I V : finType) (c : H -> Z -> R) (pi : H -> R) (y : I -> H -> V).
Implicit Types (ph : Z -> I -> V -> R) (omega : Z -> I -> R).

(** p_{1|t}^i(v | z), the posterior law of the data token y^i of the hidden value. *)
Definition token_posterior (z : Z) (i : I) (v : V) : R :=
  mean c pi z (fun h => delta (y i h) v).

(** −E Σ_i ω(Z, i) log p̂^i(X_1^i | Z). *)
Definition token_loss omega ph : R :=
  - \sum_h \sum_z pi h * c h z * \sum_i omega z i * L (ph z i (y i h)).

(** Σ ω E KL(p_{1|t} || p̂). *)
Definition token_excess omega ph : R :=
  \sum_z marginal c pi z * \sum_i omega z i * KL L (token_posterior z i) (ph z i).

Hypotheses (c_ge0 : forall h, nonneg (c h)) (pi_ge0 : nonneg pi).

Lemma token_posterior_law z i : 0 < marginal c pi z -> law (token_posterior z i).
Proof.
move=> m_gt0; split=> [v|].
  rewrite -(pmulr_rge0 _ m_gt0) meanE //; apply: sumr_ge0 => h _.
  by rewrite !mulr_ge0 ?delta_ge0.
rewrite /token_posterior /mean exchange_big /= -[RHS](sum_posterior m_gt0).
by apply: eq_bigr => h _; rewrite -mulr_sumr sum_delta1 mulr1.
Qed.

Lemma token_lossE omega ph : token_loss omega ph =
  \sum_z marginal c pi z * \sum_i omega z i * cross_entropy L (token_posterior z i) (ph z i).
Proof.
rewrite /token_loss exchange_big -sumrN; apply: eq_bigr => z _ /=.
under eq_bigr do rewrite mulr_sumr; rewrite exchange_big mulr_sumr -sumrN /=.
apply: eq_bigr => i _; rewrite mulrCA /cross_entropy mulrN mulr_sumr.
rewrite [X in _ = _ * - X](_ : _ = \sum_h c h z * pi h * L (ph z i (y i h))).
  by rewrite mulrN mulr_sumr; congr (- _); apply: eq_bigr => h _; ring.
under eq_bigr do rewrite mulrA meanE // mulr_suml.
rewrite exchange_big; apply: eq_bigr => h _ /=.
rewrite -(sum_delta (y i h) (fun v => L (ph z i v))) mulr_sumr.
by apply: eq_bigr => v _; rewrite mulrA.
Qed.

(** Masses p̂ that are positive where the posterior is. *)
Definition covers_tokens ph := forall z i, 0 < marginal c pi z ->
  covers (ph z i) (token_posterior z i).

(** L1. The cross-entropy of any p̂ exceeds that of the posteriors by Σ ω E KL(p_{1|t} || p̂), for
    every weight ω(z, i) that does not depend on x_1. The state z may hold the time. Of p̂ only its
    sign is used: it is positive where the posterior is. *)
Theorem L1 omega ph : covers_tokens ph ->
  token_loss omega ph - token_loss omega token_posterior = token_excess omega ph.
Proof.
move=> cov; rewrite !token_lossE -sumrB; apply: eq_bigr => z _.
case: (nonneg_case (marginal_ge0 c_ge0 pi_ge0 z)) => [->|m_gt0]; first by rewrite !mul0r subrr.
rewrite -mulrBr -sumrB; congr (_ * _); apply: eq_bigr => i _.
rewrite -mulrBr KL_cross_entropy //; last exact: cov.
by case: (token_posterior_law i m_gt0).
Qed.

(** A law over the tokens (or less), positive where the posterior is. *)
Definition predictor ph := [/\ forall z i, nonneg (ph z i),
  forall z i, \sum_v ph z i v <= 1 & covers_tokens ph].

Lemma token_term_ge0 ph z i : predictor ph -> 0 < marginal c pi z ->
  0 <= KL L (token_posterior z i) (ph z i).
Proof.
move=> [ph_ge0 ph1 cov] m_gt0.
exact: gibbs (token_posterior_law i m_gt0) (ph_ge0 z i) (ph1 z i) (cov z i m_gt0).
Qed.

Lemma token_excess_ge0 omega ph z : (forall z i, 0 <= omega z i) -> predictor ph ->
  0 <= marginal c pi z * \sum_i omega z i * KL L (token_posterior z i) (ph z i).
Proof.
move=> om_ge0 phP.
case: (nonneg_case (marginal_ge0 c_ge0 pi_ge0 z)) => [->|m_gt0]; first by rewrite mul0r.
apply: mulr_ge0; first exact: ltW.
by apply: sumr_ge0 => i _; apply: mulr_ge0 (om_ge0 z i) (token_term_ge0 i phP m_gt0).
Qed.

(** L1, the minimum: the posterior minimizes every loss with weights ω ≥ 0. *)
Theorem L1_minimum omega ph : (forall z i, 0 <= omega z i) -> predictor ph ->
  token_loss omega token_posterior <= token_loss omega ph.
Proof.
move=> om_ge0 phP; rewrite -subr_ge0 L1; last by case: phP.
by apply: sumr_ge0 => z _; apply: token_excess_ge0.
Qed.

(** L1, the same minimizer for any ω > 0: where p(z) > 0 the posterior is the only one. *)
Theorem L1_unique omega ph : (forall z i, 0 < omega z i) -> predictor ph ->
  token_loss omega ph <= token_loss omega token_posterior ->
  forall z i v, 0 < marginal c pi z -> ph z i v = token_posterior z i v.
Proof.
move=> om_gt0 phP; have om_ge0 z i := ltW (om_gt0 z i).
rewrite -subr_le0 L1; last by case: phP.
move=> excess_le0 z i v m_gt0; have terms_ge0 x := token_excess_ge0 x om_ge0 phP.
have excess0 : token_excess omega ph = 0.
  by apply/eqP; rewrite eq_le excess_le0 sumr_ge0 // => x _; apply: terms_ge0.
have /eqP := sum_nonneg_eq0 terms_ge0 excess0 z; rewrite mulf_eq0 gt_eqF //= => /eqP inner0.
have inner_ge0 j : 0 <= omega z j * KL L (token_posterior z j) (ph z j).
  exact: mulr_ge0 (om_ge0 z j) (token_term_ge0 j phP m_gt0).
have /eqP := sum_nonneg_eq0 inner_ge0 inner0 i; rewrite mulf_eq0 gt_eqF //= => /eqP KL0.
have [ph_ge0 ph1 cov] := phP; symmetry; apply: (@gibbs_eq R L V).
- exact: token_posterior_law.
- exact: ph_ge0.
- exact: ph1.
- exact: cov.
by rewrite KL0.
Qed.

End TokenLoss.
End CrossEntropy.

(** Falsifiers: over every real field and for every logarithm, an instance that meets the other
    hypotheses and breaks the statement. *)
Section Falsifiers.
Variables (R : realFieldType) (L : logarithm R).

Definition half : R := 2%:R^-1.
Definition fair (k : bool) : R := half.
Definition points (k x : bool) : R := delta k x.

Lemma half_gt0 : 0 < half. Proof. by rewrite invr_gt0 ltr0n. Qed.
Lemma half_lt1 : half < 1. Proof. by rewrite invf_lt1 ?ltr0n // ltr1n. Qed.
Lemma half_add : half + half = 1. Proof. by rewrite /half; field. Qed.
Lemma fair_law : law fair.
Proof. by split=> [k|]; [exact: ltW half_gt0 | rewrite big_bool /= /fair half_add]. Qed.
Lemma points_law k : law (points k). Proof. exact: delta_law. Qed.
Lemma mixture_points x : mixture fair points x = half.
Proof.
rewrite /mixture big_bool /= /points /delta /fair.
by case: x; rewrite /= !(mulr1, mulr0, addr0, add0r).
Qed.
Lemma ln_half : L half < 0. Proof. exact: ln_lt0 half_gt0 half_lt1. Qed.
Lemma one_law (p : unit -> R) : p tt = 1 -> law p.
Proof.
move=> p1; split=> [[]|]; first by rewrite p1 ler01.
by rewrite (big_pred1 tt) => [|[]].
Qed.

(** Gibbs where q is 0 and p is not, with log 0 = 0 as libraries have it. *)
Theorem gibbs_without_support : L 0 = 0 -> exists p q : bool -> R,
  [/\ law p, law q & KL L p q < 0].
Proof.
move=> L0; exists fair, (points true); split; [exact: fair_law | exact: points_law |].
rewrite /KL big_bool /= /fair /points /delta /= divr1 invr0 !mulr0 L0 mulr0 addr0.
by rewrite pmulr_rlt0 ?half_gt0 ?ln_half.
Qed.

(** Gibbs with masses q of total above 1. *)
Theorem gibbs_without_total : exists p q : unit -> R,
  [/\ law p, nonneg q, covers q p & KL L p q < 0].
Proof.
exists (fun=> 1), (fun=> 2%:R); split; first exact: one_law.
- by move=> x; rewrite ler0n.
- by move=> x _; rewrite ltr0n.
by rewrite /KL (big_pred1 tt) => [|[]//]; rewrite mul1r div1r ln_half.
Qed.

(** B1 without −log ŵ_k. *)
Theorem B1_without_prior : exists (w : bool -> R) (q : bool -> unit -> R) k x,
  [/\ law w, forall k, law (q k), 0 < w k * q k x &
      - L (mixture w q x) != - L (q k x) + L (gate w q x k)].
Proof.
exists fair, (fun _ _ => 1), true, tt; split; [exact: fair_law|by move=> k; apply: one_law| |].
  by rewrite mulr1 half_gt0.
rewrite /gate /mixture big_bool /= /fair !mulr1 half_add divr1 ln1 oppr0 add0r eq_sym.
by rewrite lt_eqF // ln_half.
Qed.

(** B11 without −log ŵ_k. *)
Theorem B11_without_prior : exists (w : bool -> R) (q : bool -> bool -> R) k x,
  [/\ law w, forall k, law (q k), 0 < w k * q k x & - L (q k x) < - L (mixture w q x)].
Proof.
exists fair, points, true, true; split; [exact: fair_law | exact: points_law | |].
  by rewrite /fair /points /delta /= mulr1 half_gt0.
by rewrite mixture_points /points /delta /= ln1 oppr0 oppr_gt0 ln_half.
Qed.

(** Masses ¼ and ¾. *)
Definition quarters (k : bool) : R := if k then half * half else 1 - half * half.

Lemma quarter_gt0 : 0 < half * half. Proof. by rewrite mulr_gt0 ?half_gt0. Qed.
Lemma quarter_lt_half : half * half < half.
Proof. by rewrite gtr_pmull ?half_gt0 ?half_lt1. Qed.
Lemma quarters_gt0 k : 0 < quarters k.
Proof.
case: k; first exact: quarter_gt0.
by rewrite subr_gt0; apply: lt_trans quarter_lt_half half_lt1.
Qed.
Lemma quarters_law : law quarters.
Proof.
by split=> [k|]; [exact/ltW/quarters_gt0 | rewrite big_bool /= /quarters addrC subrK].
Qed.

Lemma KL_quarters : 0 < KL L fair quarters.
Proof.
rewrite ltNge; apply/negP => KL_le0.
have := gibbs_eq fair_law (quarters_law.1) _ (fun k _ => quarters_gt0 k) KL_le0 true.
rewrite quarters_law.2 lexx => /(_ isT) /eqP.
by rewrite gt_eqF //; apply: quarter_lt_half.
Qed.

Lemma mixture_ones (w : bool -> R) : law w -> mixture w (fun _ (_ : unit) => 1) tt = 1.
Proof. by move=> [_ w1]; rewrite /mixture -[RHS]w1; apply: eq_bigr => k _; rewrite mulr1. Qed.

(** B2 without KL(w || ŵ): twice one and the same expert, with other masses. *)
Theorem B2_without_prior_term : exists (w wh : bool -> R) (q : bool -> unit -> R),
  [/\ law w, law wh, forall k, law (q k), covers_parts w q wh q &
      KL L (mixture w q) (mixture wh q) + gate_KL L w q wh q != experts_KL L w q q].
Proof.
exists fair, quarters, (fun _ _ => 1); split.
- exact: fair_law.
- exact: quarters_law.
- by move=> k; apply: one_law.
- by move=> k x _; rewrite mulr1 quarters_gt0.
rewrite B2.
- rewrite -subr_eq0 addrC addKr gt_eqF //; exact: KL_quarters.
- by case: fair_law.
- by move=> k; split=> [x|_]; [rewrite ler01 | case: (@one_law (fun=> 1))].
- by case: quarters_law.
- by move=> k x; rewrite ler01.
- by move=> k x _; rewrite mulr1 quarters_gt0.
Qed.

(** B2 with a part that is no law: one part of mass 1, q = q̂ = 2, ŵ = 2. *)
Theorem B2_without_laws : exists (w wh : unit -> R) (q : unit -> unit -> R),
  [/\ law w, nonneg wh, forall k, nonneg (q k), covers_parts w q wh q &
      KL L (mixture w q) (mixture wh q) + gate_KL L w q wh q !=
      experts_KL L w q q + KL L w wh].
Proof.
exists (fun=> 1), (fun=> 2%:R), (fun _ _ => 2%:R); split.
- exact: one_law.
- by move=> k; rewrite ler0n.
- by move=> k x; rewrite ler0n.
- by move=> k x _; rewrite mulr_gt0 ?ltr0n.
have one (f : unit -> R) : \sum_k f k = f tt by rewrite (big_pred1 tt) => [|[]].
rewrite /gate_KL /experts_KL /KL !one /gate /mixture !one.
have -> : 1 * 2%:R / (1 * 2%:R) = 1 :> R by field.
have -> : 2%:R * 2%:R / (2%:R * 2%:R) = 1 :> R by field.
have -> : 1 * 2%:R / (2%:R * 2%:R) = half by rewrite /half; field.
have -> : 2%:R / 2%:R = 1 :> R by field.
rewrite !divr1 ln1 div1r -/half !mulr0 addr0 add0r !mul1r -subr_eq0.
have -> : 2%:R * L half - L half = L half by ring.
by rewrite lt_eqF // ln_half.
Qed.

(** B3 for experts mixed token by token with the masses w, a static gate, in the place of the Bayes
    gate: two tokens, both equal to the part, experts and masses exact, so that the right side
    is 0. *)
Definition alike (a : bool -> R) : {ffun bool -> bool} -> R := product_law (fun=> a).
Theorem B3_without_bayes_gate : exists (w : bool -> R) (a : bool -> bool -> R),
  [/\ law w, forall k, law (a k) &
      experts_KL L w (fun k => alike (a k)) (fun k => alike (a k)) + KL L w w <
      KL L (mixture w (fun k => alike (a k))) (alike (mixture w a))].
Proof.
exists fair, points; split; [exact: fair_law | exact: points_law |].
pose q k := alike (points k); rewrite -/q.
have q_ge0 k : nonneg (q k) by move=> x; apply: prodr_ge0 => i _; apply: delta_ge0.
have q_law k : law (q k).
  by split=> //; rewrite sum_product_law big1 // => i _; case: (points_law k).
have KL_self (X : finType) (p : X -> R) : nonneg p -> KL L p p = 0.
  move=> p_ge0; rewrite /KL big1 // => x _; case: (nonneg_case (p_ge0 x)) => [->|p_gt0].
    by rewrite mul0r.
  by rewrite mulfV ?ln1 ?mulr0 // lt0r_neq0.
rewrite (KL_self _ fair) ?addr0; last by case: fair_law.
rewrite /experts_KL big1 => [|k _]; last by rewrite (KL_self _ (q k)) ?mulr0.
have w_ge0 := fair_law.1; have static_gt0 x : 0 < alike (mixture fair points) x.
  by apply: prodr_gt0 => i _; rewrite mixture_points half_gt0.
rewrite ltNge; apply/negP => KL_le0; pose x : {ffun bool -> bool} := [ffun=> true].
have mix_law : law (mixture fair q).
  split; first exact: mixture_ge0.
  by rewrite sum_mixture => [|k]; [case: fair_law | case: (q_law k)].
have static1 : \sum_x alike (mixture fair points) x <= 1.
  rewrite sum_product_law big1 ?lexx // => i _.
  by rewrite sum_mixture => [|k]; [case: fair_law | case: (points_law k)].
have staticE : alike (mixture fair points) x = half * half.
  by rewrite /alike /product_law big_bool /= !mixture_points.
have mixE : mixture fair q x = half.
  rewrite /mixture big_bool /= /q /alike /product_law !big_bool /= !ffunE /points /delta /=.
  by rewrite !(mulr1, mulr0, addr0).
have := gibbs_eq mix_law (fun x => ltW (static_gt0 x)) static1 (fun x _ => static_gt0 x) KL_le0 x.
by rewrite mixE staticE => /eqP; rewrite gt_eqF // quarter_lt_half.
Qed.

(** L4 with weights that do not sum to 1. *)
Theorem L4_without_sum : exists phi grad (r : unit -> R) (u : unit -> unit -> R) v,
  \sum_k r k * bregman phi grad (u k) v !=
  bregman phi grad (mixture r u) v + \sum_k r k * bregman phi grad (u k) (mixture r u).
Proof.
exists (fun a => a tt ^+ 2), (fun a s => 2%:R * a s), (fun=> 2%:R), (fun _ _ => 1), (fun=> 0).
have one (f : unit -> R) : \sum_k f k = f tt by rewrite (big_pred1 tt) => [|[]].
rewrite /bregman !one /mixture !one -subr_eq0.
rewrite (_ : _ - _ = - 4%:R); last by ring.
by rewrite oppr_eq0 pnatr_eq0.
Qed.

(** L4 with the targets in the second argument, φ(a) = a³. *)
Theorem L4_without_targets_first : exists phi grad (r : bool -> R) (u : bool -> unit -> R) v,
  law r /\ \sum_k r k * bregman phi grad v (u k) !=
    bregman phi grad v (mixture r u) + \sum_k r k * bregman phi grad (mixture r u) (u k).
Proof.
exists (fun a => a tt ^+ 3), (fun a s => 3%:R * a s ^+ 2), fair,
  (fun k _ => if k then 2%:R else 0), (fun=> 0); split; first exact: fair_law.
have one (f : unit -> R) : \sum_k f k = f tt by rewrite (big_pred1 tt) => [|[]].
rewrite /bregman /mixture !big_bool /= !one /fair /half -subr_eq0.
rewrite (_ : _ - _ = 3%:R); last by field.
by rewrite pnatr_eq0.
Qed.

(** D10 without I(X; K): two point masses. *)
Theorem D10_without_information : exists (w : bool -> R) (q : bool -> bool -> R),
  [/\ law w, forall k, law (q k) & entropy L (mixture w q) != \sum_k w k * entropy L (q k)].
Proof.
exists fair, points; split; [exact: fair_law | exact: points_law |].
rewrite /entropy !big_bool /= !mixture_points /points /delta /=.
rewrite ln1 !(mul0r, mulr0, addr0, add0r, oppr0) -mulrDl half_add mul1r.
by rewrite oppr_eq0 lt_eqF // ln_half.
Qed.

(** D11 for a router that does not see the state. *)
Theorem D11_without_state : exists (w : bool -> R) (p : bool -> bool -> R),
  [/\ law w, forall k, law (p k) &
      router_loss L w p (gate w p) < router_loss L w p (fun=> w)].
Proof.
exists fair, points; split; [exact: fair_law | exact: points_law |].
have gateE x k : gate fair points x k = points k x.
  rewrite /gate mixture_points /fair mulrC mulrA mulVf ?mul1r // lt0r_neq0 //.
  exact: half_gt0.
rewrite /router_loss !big_bool /= !gateE /points /delta /= /fair ln1.
rewrite !(mulr0, mul0r, mulr1, addr0, add0r, oppr0) -mulrDl half_add mul1r oppr_gt0.
exact: ln_half.
Qed.

(** D11 for a router of total mass above 1. *)
Theorem D11_without_law : exists (w : unit -> R) (p : unit -> unit -> R) (rho : unit -> unit -> R),
  [/\ law w, forall k, law (p k), forall z k, 0 < rho z k &
      router_loss L w p rho < router_loss L w p (gate w p)].
Proof.
exists (fun=> 1), (fun _ _ => 1), (fun _ _ => 2%:R); split.
- exact: one_law.
- by move=> k; apply: one_law.
- by move=> z k; rewrite ltr0n.
have one (f : unit -> R) : \sum_k f k = f tt by rewrite (big_pred1 tt) => [|[]].
rewrite /router_loss !one /gate /mixture !one !mul1r invr1 ln1 oppr0 oppr_lt0.
by rewrite -[L _]opprK -lnV ?ltr0n // oppr_gt0 ln_half.
Qed.

(** L1 with a weight that depends on x_1: two tokens of mass ½, the first weighted by 3; then the
    posterior ½ costs more than the law ¾, ¼. *)
Definition biased_loss (ph : bool -> R) : R :=
  - \sum_v half * ((if v then 3%:R else 1) * L (ph v)).
Theorem L1_without_blind_weight : exists ph : bool -> R,
  [/\ law ph, forall v, 0 < ph v & biased_loss ph < biased_loss fair].
Proof.
have q_law := quarters_law; exists (fun v => quarters (~~ v)); split.
- by split=> [v|]; [case: q_law | rewrite -q_law.2 !big_bool /= addrC].
- by move=> v; apply: quarters_gt0.
have three : 0 < 3%:R / 2%:R :> R by rewrite divr_gt0 ?ltr0n.
have log3 : 1 < 3%:R * L (3%:R / 2%:R).
  have two : 0 < 2%:R / 3%:R :> R by rewrite divr_gt0 ?ltr0n.
  have neq1 : 2%:R / 3%:R != 1 :> R.
    by rewrite -subr_eq0 (_ : _ - 1 = - (3%:R)^-1) ?oppr_eq0 ?invr_eq0 ?pnatr_eq0 //; field.
  have := ln_lt L two neq1; rewrite -[2%:R / _]invf_div lnV // ltr_oppl invf_div.
  rewrite -(@ltr_pmul2l _ 3%:R) ?ltr0n // => /(le_lt_trans _); apply.
  by rewrite le_eqVlt; apply/orP; left; apply/eqP; field.
have log2 : -1 <= L half.
  by have := ln_ge L half_gt0; rewrite /half invrK (_ : 1 - 2%:R = -1) //; ring.
have -> : biased_loss fair = - (half * (4%:R * L half)).
  by rewrite /biased_loss !big_bool /= /fair; congr (- _); ring.
have -> : biased_loss (fun v => quarters (~~ v)) =
    - (half * (3%:R * L (3%:R / 2%:R) + 5%:R * L half)).
  rewrite /biased_loss !big_bool /= /quarters (lnM L half_gt0 half_gt0).
  have -> : 1 - half * half = half * (3%:R / 2%:R) by rewrite /half; field.
  by rewrite lnM ?half_gt0 //; congr (- _); ring.
rewrite ltr_opp2 ltr_pmul2l ?half_gt0 // -subr_gt0.
rewrite (_ : _ - _ = 3%:R * L (3%:R / 2%:R) + L half); last by ring.
by rewrite -(subrr 1) ltr_le_add.
Qed.

End Falsifiers.
