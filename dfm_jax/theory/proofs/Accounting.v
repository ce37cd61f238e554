(** Accounting along a sequence: routers at every step, truncated gates, leakage, parallel draws.

    A sequence is a finite function from positions to states. q(x^A) for a set A of positions is
    the mass of all sequences that agree with x on A, and E_q of a function of x^A is the sum over
    whole sequences x of q(x) times the function, so that prefixes need no type of their own. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Information.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Variation.
Variables (R : realFieldType).

(** TV(p, q) = ½ Σ_x |p(x) − q(x)|. *)
Definition variation (X : finType) (p q : X -> R) : R := 2%:R^-1 * \sum_x `|p x - q x|.

Variables (K X : finType).
Implicit Types (r s : K -> R) (q qh : K -> X -> R).

Lemma half_ge0 : 0 <= 2%:R^-1 :> R.
Proof. by rewrite invr_ge0 ler0n. Qed.

Lemma variation_self (Y : finType) (p : Y -> R) : variation p p = 0.
Proof. by rewrite /variation big1 ?mulr0 // => x _; rewrite subrr normr0. Qed.

(** Two mixtures of different experts with different gates: the second gate's experts are laws or
    less, the first gate is not negative. *)
Lemma variation_mixture r s q qh : nonneg r -> (forall k, nonneg (qh k)) ->
  (forall k, \sum_x qh k x <= 1) ->
  variation (mixture r q) (mixture s qh) <=
  variation r s + \sum_k r k * variation (q k) (qh k).
Proof.
move=> r_ge0 qh_ge0 qh1; rewrite /variation.
under [X in _ <= _ + X]eq_bigr do rewrite mulrCA.
rewrite -mulr_sumr -mulrDr; apply: (ler_wpmul2l half_ge0).
have step x : `|mixture r q x - mixture s qh x| <=
    \sum_k (`|r k - s k| * qh k x + r k * `|q k x - qh k x|).
  rewrite /mixture -sumrB; apply: le_trans (ler_norm_sum _ _ _) _; apply: ler_sum => k _.
  have -> : r k * q k x - s k * qh k x = (r k - s k) * qh k x + r k * (q k x - qh k x) by ring.
  by apply: le_trans (ler_norm_add _ _) _; rewrite !normrM (ger0_norm (r_ge0 k)) (ger0_norm (qh_ge0 k x)).
apply: le_trans (ler_sum _ (fun x _ => step x)) _.
rewrite exchange_big -big_split /=; apply: ler_sum => k _.
rewrite big_split /= -mulr_sumr -mulr_sumr ler_add2r.
by rewrite -[X in _ <= X]mulr1 ler_wpmul2l.
Qed.

(** The mass M of the kept experts, and the gate renormalized on them. *)
Definition kept_mass (A : pred K) r : R := \sum_(k | A k) r k.
Definition top_gate (A : pred K) r (k : K) : R := if A k then r k / kept_mass A r else 0.

Lemma top_gate_ge0 A r : nonneg r -> nonneg (top_gate A r).
Proof.
move=> r_ge0 k; rewrite /top_gate; case: ifP => // _.
by rewrite divr_ge0 // sumr_ge0.
Qed.

Lemma sum_top_gate A r : 0 < kept_mass A r -> \sum_k top_gate A r k = 1.
Proof.
move=> M_gt0; rewrite /top_gate -big_mkcond /= -mulr_suml.
by rewrite mulfV // lt0r_neq0.
Qed.

Lemma kept_mass_le1 A r : law r -> kept_mass A r <= 1.
Proof.
move=> [r_ge0 <-]; rewrite [X in _ <= X](bigID A) /= ler_addl.
by apply: sumr_ge0 => k _.
Qed.

Lemma variation_top_gate A r : law r -> 0 < kept_mass A r ->
  variation r (top_gate A r) = 1 - kept_mass A r.
Proof.
move=> r_law M_gt0; have M_le1 := kept_mass_le1 A r_law; have [r_ge0 r1] := r_law.
rewrite /variation (bigID A) /=.
have -> : \sum_(k | A k) `|r k - top_gate A r k| = 1 - kept_mass A r.
  have -> : 1 - kept_mass A r = \sum_(k | A k) r k * ((kept_mass A r)^-1 - 1).
    by rewrite -mulr_suml -/(kept_mass A r) mulrBr mulr1 mulfV // lt0r_neq0.
  apply: eq_bigr => k Ak; rewrite /top_gate Ak distrC ger0_norm; first by ring.
  have -> : r k / kept_mass A r - r k = r k * ((kept_mass A r)^-1 - 1) by ring.
  by rewrite mulr_ge0 // subr_ge0 invr_ge1 // unitfE lt0r_neq0.
have -> : \sum_(k | ~~ A k) `|r k - top_gate A r k| = 1 - kept_mass A r.
  rewrite -r1 [in RHS](bigID A) /= addrC addrA addNr add0r; apply: eq_bigr => k /negPf Ak.
  by rewrite /top_gate Ak subr0 ger0_norm.
by field.
Qed.

(** B6. The experts in A, of total mass M > 0, renormalized: TV(full, top) ≤ 1 − M. A may be any set
    of experts, not the likeliest only; the gate is a law and the experts are laws. *)
Theorem B6 A r q : law r -> (forall k, law (q k)) -> 0 < kept_mass A r ->
  variation (mixture r q) (mixture (top_gate A r) q) <= 1 - kept_mass A r.
Proof.
move=> r_law q_law M_gt0; rewrite -variation_top_gate //.
apply: le_trans (variation_mixture _ q _ _ _) _ => [||k|]; first by case: r_law.
- by move=> k; case: (q_law k).
- by rewrite (q_law k).2.
by rewrite [X in _ + X]big1 ?addr0 // => k _; rewrite variation_self mulr0.
Qed.

(** B6, the divergence: KL(top || full) ≤ −log M. *)
Theorem B6_divergence (L : logarithm R) A r q : nonneg r -> (forall k, law (q k)) ->
  0 < kept_mass A r ->
  KL L (mixture (top_gate A r) q) (mixture r q) <= - L (kept_mass A r).
Proof.
move=> r_ge0 q_law M_gt0; have q_ge0 k := (q_law k).1.
have top1 : \sum_x mixture (top_gate A r) q x = 1.
  by rewrite sum_mixture ?sum_top_gate // => k; case: (q_law k).
have top_ge0 := mixture_ge0 (top_gate_ge0 A r_ge0) q_ge0.
rewrite -lnV // -[X in _ <= X]mul1r -top1 mulr_suml; apply: ler_sum => x _.
case: (nonneg_case (top_ge0 x)) => [->|top_gt0]; first by rewrite !mul0r.
have full : kept_mass A r * mixture (top_gate A r) q x <= mixture r q x.
  rewrite /mixture mulr_sumr; apply: ler_sum => k _; rewrite /top_gate; case: ifP => _.
    by rewrite mulrA [_ * (r k / _)]mulrC divfK // lt0r_neq0.
  by rewrite mul0r mulr0 mulr_ge0.
have full_gt0 : 0 < mixture r q x by apply: lt_le_trans full; rewrite mulr_gt0.
apply: (ler_wpmul2l (ltW top_gt0)).
apply: ln_homo; first by rewrite divr_gt0.
by rewrite ler_pdivr_mulr // mulrC ler_pdivl_mulr // mulrC.
Qed.

End Variation.

Section Agreement.
Variables (R : realFieldType) (I S : finType).
Implicit Types (x y : {ffun I -> S}) (q a b : {ffun I -> S} -> R) (A : pred I).

(** x^A = y^A. *)
Definition agree_on A x y : bool := [forall i, A i ==> (x i == y i)].

(** q(x^A). *)
Definition mass q A x : R := \sum_(y | agree_on A x y) q y.

(** q(X^i = v | x^A), 0 where q(x^A) = 0. *)
Definition next_token q A (i : I) x (v : S) : R :=
  (\sum_(y | agree_on A x y && (y i == v)) q y) / mass q A x.

(** A function that depends on x^A only. *)
Definition reads (T : Type) A (f : {ffun I -> S} -> T) := forall x y, agree_on A x y -> f x = f y.

(** A with i. *)
Definition with_token A (i : I) : pred I := fun j => A j || (j == i).

Lemma agree_onP A x y : reflect (forall i, A i -> x i = y i) (agree_on A x y).
Proof.
apply: (iffP forallP) => [xy i Ai|xy i]; first by have := xy i; rewrite Ai => /eqP.
by apply/implyP => Ai; rewrite xy.
Qed.

Lemma agree_refl A x : agree_on A x x.
Proof. exact/agree_onP. Qed.

Lemma agree_sym A x y : agree_on A x y = agree_on A y x.
Proof. by apply/agree_onP/agree_onP => xy i Ai; rewrite xy. Qed.

Lemma agree_eq A x y z : agree_on A x y -> agree_on A x z = agree_on A y z.
Proof.
move/agree_onP => xy; apply/agree_onP/agree_onP => xz i Ai; first by rewrite -xy ?xz.
by rewrite xy ?xz.
Qed.

Lemma agree_with A i x y : agree_on (with_token A i) x y = agree_on A x y && (y i == x i).
Proof.
apply/agree_onP/andP => [xy|[/agree_onP xy /eqP yi] j /orP [Aj|/eqP ->]]; last by [].
  split; last by rewrite xy // /with_token eqxx orbT.
  by apply/agree_onP => j Aj; rewrite xy // /with_token Aj.
exact: xy.
Qed.

Lemma mass_reads q A : reads A (mass q A).
Proof. by move=> x y xy; apply: eq_bigl => z; rewrite (agree_eq z xy). Qed.

Lemma next_reads q A i : reads A (next_token q A i).
Proof.
move=> x y xy; rewrite /next_token (mass_reads q xy).
Admitted.

End Agreement.
