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
