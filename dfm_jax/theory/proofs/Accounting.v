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

(** A law, or less. *)
Definition sub_law (X : finType) (p : X -> R) := nonneg p /\ \sum_x p x <= 1.

Lemma law_sub (X : finType) (p : X -> R) : law p -> sub_law p.
Proof. by case=> p_ge0 p1; split; rewrite ?p1. Qed.

Variables (K X : finType).
Implicit Types (r s : K -> R) (q qh : K -> X -> R).

Lemma half_ge0 : 0 <= 2%:R^-1 :> R.
Proof. by rewrite invr_ge0 ler0n. Qed.

Lemma variation_self (Y : finType) (p : Y -> R) : variation p p = 0.
Proof. by rewrite /variation big1 ?mulr0 // => x _; rewrite subrr normr0. Qed.

(** Two mixtures of different experts with different gates: the second gate's experts are laws or
    less, the first gate is not negative. *)
Lemma variation_mixture r s q qh : nonneg r -> (forall k, sub_law (qh k)) ->
  variation (mixture r q) (mixture s qh) <=
  variation r s + \sum_k r k * variation (q k) (qh k).
Proof.
move=> r_ge0 qh_sub; rewrite /variation.
have qh_ge0 k := (qh_sub k).1.
under [X in _ <= _ + X]eq_bigr do rewrite mulrCA.
rewrite -mulr_sumr -mulrDr; apply: (ler_wpmul2l half_ge0).
have step x : `|mixture r q x - mixture s qh x| <=
    \sum_k (`|r k - s k| * qh k x + r k * `|q k x - qh k x|).
  rewrite /mixture -sumrB; apply: le_trans (ler_norm_sum _ _ _) _; apply: ler_sum => k _.
  have -> : r k * q k x - s k * qh k x = (r k - s k) * qh k x + r k * (q k x - qh k x) by ring.
  apply: le_trans (ler_norm_add _ _) _.
  by rewrite !normrM (ger0_norm (r_ge0 k)) (ger0_norm (qh_ge0 k x)).
apply: le_trans (ler_sum _ (fun x _ => step x)) _.
rewrite exchange_big -big_split /=; apply: ler_sum => k _.
rewrite big_split /= -mulr_sumr -mulr_sumr ler_add2r.
by rewrite -[X in _ <= X]mulr1 ler_wpmul2l //; case: (qh_sub k).
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
    of experts, not the likeliest only; the gate is a law and the experts are laws or less. *)
Theorem B6 A r q : law r -> (forall k, sub_law (q k)) -> 0 < kept_mass A r ->
  variation (mixture r q) (mixture (top_gate A r) q) <= 1 - kept_mass A r.
Proof.
move=> r_law q_sub M_gt0; rewrite -variation_top_gate //.
apply: le_trans (variation_mixture _ q _ q_sub) _; first by case: r_law.
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
Definition token_given q A (i : I) x (v : S) : R :=
  (\sum_(y | agree_on A x y && (y i == v)) q y) / mass q A x.

(** A with i. *)
Definition with_token A (i : I) : pred I := fun j => A j || (j == i).

(** The function depends on x^A only. *)
Definition reads A (f : {ffun I -> S} -> R) := forall x y, agree_on A x y -> f x = f y.

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

Lemma agree_ext A B x y : A =1 B -> agree_on A x y = agree_on B x y.
Proof. by move=> AB; apply: eq_forallb => i; rewrite AB. Qed.

Lemma agree_with A i x y : agree_on (with_token A i) x y = agree_on A x y && (y i == x i).
Proof.
apply/agree_onP/andP => [xy|[/agree_onP xy /eqP yi] j /orP [Aj|/eqP ->]].
- split; last by rewrite xy // /with_token eqxx orbT.
  by apply/agree_onP => j Aj; rewrite xy // /with_token Aj.
- exact: xy.
- by [].
Qed.

Lemma mass_ext q A B x : A =1 B -> mass q A x = mass q B x.
Proof. by move=> AB; apply: eq_bigl => y; rewrite (agree_ext _ _ AB). Qed.

Lemma mass_reads q A : reads A (mass q A).
Proof. by move=> x y xy; apply: eq_bigl => z; rewrite (agree_eq z xy). Qed.

Lemma token_reads q A i v : reads A (fun x => token_given q A i x v).
Proof.
move=> x y xy; rewrite /token_given (mass_reads q xy); congr (_ / _).
by apply: eq_bigl => z; rewrite (agree_eq z xy).
Qed.

Lemma mass_ge0 q A : nonneg q -> nonneg (mass q A).
Proof. by move=> q_ge0 x; apply: sumr_ge0 => y _. Qed.

Lemma mass_ge q A x : nonneg q -> q x <= mass q A x.
Proof.
move=> q_ge0; rewrite /mass (bigD1 x) ?agree_refl //= ler_addl.
by apply: sumr_ge0 => y _.
Qed.

(** The number of sequences that agree with x on A, and sums over the values of x^A. *)
Definition completions A x : R := mass (fun=> 1) A x.

Lemma completions_gt0 A x : 0 < completions A x.
Proof.
rewrite /completions; have /= := @mass_ge (fun=> 1) A x (fun=> ler01).
by apply: lt_le_trans; rewrite ltr01.
Qed.

Lemma disintegrate a A f : reads A f ->
  \sum_x a x * f x = \sum_x f x / completions A x * mass a A x.
Proof.
move=> f_A; under [RHS]eq_bigr do rewrite mulr_sumr.
rewrite (exchange_big_dep predT) //=; apply: eq_bigr => x _.
transitivity (\sum_(y | agree_on A x y) a x * (f x / completions A x) * 1).
  rewrite -mulr_sumr -/(mass (fun=> 1) A x) -/(completions A x) -mulrA divfK //.
  by rewrite lt0r_neq0 // completions_gt0.
apply: eq_big => [y|y xy]; first by rewrite agree_sym.
by rewrite mulr1 mulrC (f_A _ _ xy) /completions (mass_reads _ xy).
Qed.

Lemma disintegrate_eq a b A f : reads A f -> mass a A =1 mass b A ->
  \sum_x a x * f x = \sum_x b x * f x.
Proof.
by move=> f_A ab; rewrite !(disintegrate _ f_A); apply: eq_bigr => x _; rewrite ab.
Qed.

Lemma mass_scale a A f x : reads A f -> mass (fun y => a y * f y) A x = mass a A x * f x.
Proof.
move=> f_A; rewrite /mass mulr_suml; apply: eq_bigr => y xy.
by rewrite (f_A _ _ xy).
Qed.

Lemma sum_tokens a A i x :
  \sum_v \sum_(y | agree_on A x y && (y i == v)) a y = mass a A x.
Proof. by rewrite /mass [RHS](partition_big (fun y => y i) predT). Qed.

Lemma token_givenE q A i x v : nonneg q ->
  mass q A x * token_given q A i x v = \sum_(y | agree_on A x y && (y i == v)) q y.
Proof.
move=> q_ge0; rewrite /token_given mulrCA.
case: (nonneg_case (mass_ge0 A q_ge0 x)) => [q0|q_gt0]; last first.
  by rewrite mulfV ?mulr1 // lt0r_neq0.
rewrite q0 mul0r mulr0 big1 // => y /andP [xy _].
apply/eqP; rewrite eq_le q_ge0 andbT -q0 (mass_reads q xy).
exact: mass_ge.
Qed.

Lemma token_own q A i x :
  token_given q A i x (x i) = mass q (with_token A i) x / mass q A x.
Proof. by congr (_ / _); apply: eq_bigl => y; rewrite agree_with. Qed.

Lemma token_ge0 q A i x : nonneg q -> nonneg (token_given q A i x).
Proof. by move=> q_ge0 v; rewrite divr_ge0 ?mass_ge0 // sumr_ge0. Qed.

Lemma sum_token q A i x : 0 < mass q A x -> \sum_v token_given q A i x v = 1.
Proof.
by move=> q_gt0; rewrite /token_given -mulr_suml sum_tokens mulfV // lt0r_neq0.
Qed.

Lemma sum_token_le1 q A i x : nonneg q -> \sum_v token_given q A i x v <= 1.
Proof.
move=> q_ge0; case: (nonneg_case (mass_ge0 A q_ge0 x)) => [q0|q_gt0].
  by rewrite /token_given q0 invr0 -mulr_suml mulr0 ler01.
by rewrite sum_token.
Qed.

(** The tower rule: E f(x^A, X^i) = E Σ_v q(v | x^A) f(x^A, v). *)
Lemma tower q A i (f : {ffun I -> S} -> S -> R) : nonneg q -> (forall v, reads A (f^~ v)) ->
  \sum_x q x * f x (x i) = \sum_x q x * \sum_v token_given q A i x v * f x v.
Proof.
move=> q_ge0 f_A; under [RHS]eq_bigr do rewrite mulr_sumr; rewrite [RHS]exchange_big /=.
under eq_bigr => x _ do rewrite -(sum_delta (x i) (f x)) mulr_sumr.
rewrite exchange_big; apply: eq_bigr => v _ /=.
under eq_bigr do rewrite mulrA; under [RHS]eq_bigr do rewrite mulrA.
apply: (disintegrate_eq (f_A v)) => x.
rewrite (mass_scale q x (token_reads q i v)) token_givenE //.
rewrite /mass [RHS]big_mkcondr; apply: eq_bigr => y _; rewrite /delta eq_sym.
by case: eqP => _; rewrite ?mulr1 ?mulr0.
Qed.

(** q(x^A, x^i) = q(x^A) q(x^i | x^A). *)
Lemma mass_with q A i x : nonneg q ->
  mass q (with_token A i) x = mass q A x * token_given q A i x (x i).
Proof. by move=> q_ge0; rewrite token_givenE //; apply: eq_bigl => y; rewrite agree_with. Qed.

Lemma sum_completions A x : \sum_(y | agree_on A x y) (completions A y)^-1 = 1.
Proof.
rewrite (eq_bigr (fun=> 1 * (completions A x)^-1)) => [|y xy].
  by rewrite -mulr_suml mulfV // lt0r_neq0 // completions_gt0.
by rewrite mul1r /completions (mass_reads _ xy).
Qed.

(** A sum over x^A and x^i is a sum over x^A and the values of x^i. *)
Lemma prefix_step A i (f : {ffun I -> S} -> S -> R) : ~~ A i -> (forall v, reads A (f^~ v)) ->
  \sum_x f x (x i) / completions (with_token A i) x = \sum_x (\sum_v f x v) / completions A x.
Proof.
move=> Ai f_A; under [RHS]eq_bigr do rewrite mulr_suml; rewrite [RHS]exchange_big /=.
under eq_bigr => x _ do rewrite -(sum_delta (x i) (f x)) mulr_suml.
rewrite exchange_big; apply: eq_bigr => v _ /=.
under eq_bigr do rewrite mulrAC; under [RHS]eq_bigr do rewrite mulrC.
apply: (disintegrate_eq (f_A v)) => x; rewrite /mass sum_completions.
rewrite -[RHS](sum_completions (with_token A i) (put x i v)).
rewrite [RHS](eq_bigl (fun y => agree_on A x y && (y i == v))); last first.
  move=> y; rewrite agree_with ffunE eqxx; congr (_ && _).
  apply/esym/agree_eq/agree_onP => j Aj; rewrite ffunE.
  by case: eqP Aj Ai => // -> ->.
rewrite [RHS]big_mkcondr; apply: eq_bigr => y _; rewrite /delta eq_sym.
by case: eqP => _; rewrite ?mul1r ?mul0r.
Qed.

Section Parts.
Variables (K : finType) (w : K -> R) (qs : K -> {ffun I -> S} -> R).
Hypotheses (w_ge0 : nonneg w) (qs_ge0 : forall k, nonneg (qs k)).

(** r_k(x^A) = w_k q_k(x^A) / Σ_j w_j q_j(x^A). *)
Definition gate_given A x (k : K) : R := gate w (fun k => mass (qs k) A) x k.

Lemma mass_mixture A x : mass (mixture w qs) A x = mixture w (fun k => mass (qs k) A) x.
Proof.
by rewrite /mass /mixture exchange_big; apply: eq_bigr => k _; rewrite mulr_sumr.
Qed.

Lemma gate_given_reads A k : reads A (fun x => gate_given A x k).
Proof.
move=> x y xy; rewrite /gate_given /gate (mass_reads (qs k) xy); congr (_ / _).
by apply: eq_bigr => j _; rewrite (mass_reads (qs j) xy).
Qed.

Lemma gate_givenE A x k : mass (mixture w qs) A x * gate_given A x k = w k * mass (qs k) A x.
Proof. by rewrite mass_mixture gateE // => j; apply: mass_ge0. Qed.

Lemma gate_given_law A x : 0 < mass (mixture w qs) A x -> law (gate_given A x).
Proof. by rewrite mass_mixture => m_gt0; apply: gate_law => // k; apply: mass_ge0. Qed.

Lemma gate_given_ge0 A x : nonneg (gate_given A x).
Proof. by apply: gate_ge0 => // k; apply: mass_ge0. Qed.

(** E_q r_k(x^A) f(x^A) = w_k E_k f(x^A). *)
Lemma gate_tower A k f : reads A f ->
  \sum_x mixture w qs x * (gate_given A x k * f x) = w k * \sum_x qs k x * f x.
Proof.
move=> f_A; rewrite mulr_sumr; under eq_bigr do rewrite mulrA.
under [RHS]eq_bigr do rewrite mulrA.
apply: (disintegrate_eq f_A) => x; rewrite (mass_scale _ x (gate_given_reads k)) gate_givenE.
by rewrite /mass mulr_sumr.
Qed.

(** D6 for any set of positions: q(v | x^A) = Σ_k r_k(x^A) q_k(v | x^A). *)
Lemma token_mixture A i x v : token_given (mixture w qs) A i x v =
  mixture (gate_given A x) (fun k => token_given (qs k) A i x) v.
Proof.
rewrite {1}/token_given mass_mixture exchange_big /= mulr_suml; apply: eq_bigr => k _.
rewrite -mulr_sumr -(token_givenE A i x v (qs_ge0 k)) /gate_given /gate.
by ring.
Qed.

End Parts.
End Agreement.

Section Chain.
Variables (R : realFieldType) (L : logarithm R) (n : nat) (S : finType).
Implicit Types (x y : {ffun 'I_n -> S}) (q : {ffun 'I_n -> S} -> R).
Implicit Types (m : 'I_n -> {ffun 'I_n -> S} -> S -> R).

(** The positions before t, x^{≤t} for t tokens. *)
Definition before (t : nat) : pred 'I_n := fun j => (j < t)%N.

(** q(X^{t+1} = v | x^{≤t}); positions are counted from 0, so that t is also the next position. *)
Definition next_token q (t : 'I_n) x (v : S) : R := token_given q (before t) t x v.

(** The law of whole sequences that next-token laws m make: Π_t m(x^{t+1} | x^{≤t}). *)
Definition sequence_law m x : R := \prod_t m t x (x t).

(** Each next-token law depends on the tokens before it only. *)
Definition causal (T : Type) (m : 'I_n -> {ffun 'I_n -> S} -> T -> R) :=
  forall (t : 'I_n) v, reads (before t) (fun x => m t x v).

Lemma next_causal q : causal (next_token q).
Proof. by move=> t v; apply: token_reads. Qed.

Lemma before_next (t : 'I_n) : before t.+1 =1 with_token (before t) t.
Proof. by move=> j; rewrite /before /with_token ltnS leq_eqVlt orbC -val_eqE. Qed.

Lemma mass_before0 q x : law q -> mass q (before 0) x = 1.
Proof. by move=> [_ <-]; apply: eq_bigl => y; apply/agree_onP => i. Qed.

Lemma mass_all q x : mass q (before n) x = q x.
Proof.
rewrite /mass (big_pred1 x) // => y; apply/agree_onP/eqP => [xy|-> //].
by apply/ffunP => i; rewrite xy // /before ltn_ord.
Qed.

Lemma mass_gt0 q A x : nonneg q -> 0 < q x -> 0 < mass q A x.
Proof. by move=> q_ge0 qx; apply: lt_le_trans qx (mass_ge A x q_ge0). Qed.

Lemma next_own q (t : 'I_n) x :
  next_token q t x (x t) = mass q (before t.+1) x / mass q (before t) x.
Proof. by rewrite /next_token token_own (mass_ext _ _ (before_next t)). Qed.

Lemma next_own_gt0 q t x : nonneg q -> 0 < q x -> 0 < next_token q t x (x t).
Proof. by move=> q_ge0 qx; rewrite next_own divr_gt0 ?mass_gt0. Qed.

(** q(x) = Π_t q(x^{t+1} | x^{≤t}), S1. *)
Lemma sequence_lawE q x : law q -> 0 < q x -> sequence_law (next_token q) x = q x.
Proof.
move=> q_law qx; have [q_ge0 _] := q_law; rewrite /sequence_law.
under eq_bigr do rewrite next_own.
rewrite -(big_mkord predT (fun t => mass q (before t.+1) x / mass q (before t) x)).
rewrite -[RHS]mass_all.
suff prefixes N : \prod_(0 <= t < N) (mass q (before t.+1) x / mass q (before t) x) =
    mass q (before N) x by exact: prefixes.
elim: N => [|N IH]; first by rewrite big_geq ?mass_before0.
by rewrite big_nat_recr //= IH mulrC divfK // lt0r_neq0 // mass_gt0.
Qed.

(** The chain rule of a divergence along the prefixes. *)
Lemma KL_chain q m : law q -> causal m -> (forall t x, covers (m t x) (next_token q t x)) ->
  KL L q (sequence_law m) = \sum_t \sum_x q x * KL L (next_token q t x) (m t x).
Proof.
move=> q_law m_causal cov; have [q_ge0 _] := q_law.
pose f t x v := L (next_token q t x v / m t x v).
transitivity (\sum_x q x * \sum_t f t x (x t)).
  apply: eq_bigr => x _; case: (nonneg_case (q_ge0 x)) => [->|qx]; first by rewrite !mul0r.
  congr (_ * _); rewrite -{1}(sequence_lawE q_law qx) /sequence_law -prodf_div ln_prod // => t.
  by rewrite divr_gt0 ?next_own_gt0 // cov // next_own_gt0.
under eq_bigr do rewrite mulr_sumr; rewrite exchange_big; apply: eq_bigr => t _ /=.
apply: (@tower R _ S q (before t) t (f t) q_ge0) => v x y xy.
by rewrite /f (@next_causal q t v x y xy) (m_causal t v _ _ xy).
Qed.

Lemma next_law q t x : nonneg q -> 0 < q x -> law (next_token q t x).
Proof.
by move=> q_ge0 qx; split; [exact: token_ge0 | apply: sum_token; apply: mass_gt0].
Qed.

(** m gives a law over the next token, or less, at every prefix. *)
Definition sub_laws (T : finType) (m : 'I_n -> {ffun 'I_n -> S} -> T -> R) :=
  forall t x, sub_law (m t x).

(** The likelihood of the first t tokens, and its distance from theirs under q. *)
Definition prefix_law m (t : nat) x : R := \prod_(s | before t s) m s x (x s).
Definition prefix_distance q m (t : nat) : R :=
  \sum_x `|mass q (before t) x - prefix_law m t x| / completions R (before t) x.

Lemma prefix_law_reads m t : causal m -> reads (before t) (prefix_law m t).
Proof.
move=> m_causal x y /agree_onP xy; apply: eq_bigr => s st; rewrite (xy s st).
apply: m_causal; apply/agree_onP => j js; apply: xy; exact: ltn_trans js st.
Qed.

Lemma prefix_law_next m (t : 'I_n) x : prefix_law m t.+1 x = prefix_law m t x * m t x (x t).
Proof.
rewrite /prefix_law (bigD1 t) /= ?/before ?ltnSn // mulrC; congr (_ * _).
by apply: eq_bigl => j; rewrite ltnS ltn_neqAle andbC.
Qed.

Lemma prefix_distance_next q m (t : 'I_n) : nonneg q -> causal m -> sub_laws m ->
  prefix_distance q m t.+1 <=
  prefix_distance q m t + \sum_x q x * \sum_v `|next_token q t x v - m t x v|.
Proof.
move=> q_ge0 m_causal m_sub.
pose f x v := `|mass q (before t) x * next_token q t x v - prefix_law m t x * m t x v|.
have -> : prefix_distance q m t.+1 = \sum_x (\sum_v f x v) / completions R (before t) x.
  rewrite -(@prefix_step R _ S (before t) t) => [|| v x y xy]; last first.
  - rewrite /f (mass_reads q xy) (@next_causal q t v x y xy) (m_causal t v _ _ xy).
    by rewrite (prefix_law_reads m_causal xy).
  - by rewrite /before ltnn.
  apply: eq_bigr => x _; rewrite /completions (mass_ext _ _ (before_next t)) /f.
  by rewrite (mass_ext _ _ (before_next t)) mass_with // prefix_law_next.
rewrite (@disintegrate R _ S q (before t)) => [|x y xy]; last first.
  by apply: eq_bigr => v _; rewrite (@next_causal q t v x y xy) (m_causal t v _ _ xy).
rewrite -big_split; apply: ler_sum => x _ /=; rewrite mulrAC -mulrDl.
apply: ler_wpmul2r; first by rewrite invr_ge0 ltW // completions_gt0.
have [m_ge0 m1] := m_sub t x.
apply: (@le_trans _ _ (\sum_v (`|mass q (before t) x - prefix_law m t x| * m t x v +
    `|next_token q t x v - m t x v| * mass q (before t) x))).
  apply: ler_sum => v _; rewrite /f.
  have -> : mass q (before t) x * next_token q t x v - prefix_law m t x * m t x v =
      (mass q (before t) x - prefix_law m t x) * m t x v +
      (next_token q t x v - m t x v) * mass q (before t) x by ring.
  apply: le_trans (ler_norm_add _ _) _; rewrite !normrM (ger0_norm (m_ge0 v)).
  by rewrite (ger0_norm (mass_ge0 _ q_ge0 x)).
rewrite big_split /= -mulr_sumr -mulr_suml ler_add2r.
by rewrite -[X in _ <= X]mulr1 ler_wpmul2l.
Qed.

Lemma prefix_distance_le q m (t : nat) : law q -> causal m -> sub_laws m -> (t <= n)%N ->
  prefix_distance q m t <=
  \sum_(s | before t s) \sum_x q x * \sum_v `|next_token q s x v - m s x v|.
Proof.
move=> q_law m_causal m_sub; have [q_ge0 _] := q_law; elim: t => [|t IH] tn.
  rewrite /prefix_distance [X in _ <= X]big_pred0 // big1 // => x _.
  by rewrite mass_before0 // /prefix_law big_pred0 // subrr normr0 mul0r.
apply: le_trans (prefix_distance_next (Ordinal tn) q_ge0 m_causal m_sub) _.
rewrite [X in _ <= X](bigD1 (Ordinal tn)) /= ?/before ?ltnSn // addrC ler_add2l.
apply: le_trans (IH (ltnW tn)) _; rewrite le_eqVlt; apply/orP; left; apply/eqP.
by apply: eq_bigl => j; rewrite /before ltnS ltn_neqAle andbC -val_eqE.
Qed.

(** Variation along the prefixes. *)
Lemma variation_chain q m : law q -> causal m -> sub_laws m ->
  variation q (sequence_law m) <= \sum_t \sum_x q x * variation (next_token q t x) (m t x).
Proof.
move=> q_law m_causal m_sub.
have := prefix_distance_le q_law m_causal m_sub (leqnn n).
have -> : prefix_distance q m n = \sum_x `|q x - sequence_law m x|.
  apply: eq_bigr => x _; rewrite /completions !mass_all divr1; congr `|_ - _|.
  by apply: eq_bigl => s; rewrite /before ltn_ord.
rewrite [X in _ <= X](eq_bigl predT) => [le|s]; last by rewrite /before ltn_ord.
rewrite /variation.
under [X in _ <= X]eq_bigr do under eq_bigr do rewrite mulrCA.
under [X in _ <= X]eq_bigr do rewrite -mulr_sumr.
by rewrite -mulr_sumr; apply: (ler_wpmul2l (half_ge0 R)).
Qed.

Section Routers.
Variables (K : finType) (w : K -> R) (qs : K -> {ffun 'I_n -> S} -> R).
Implicit Types (rho : 'I_n -> {ffun 'I_n -> S} -> K -> R).
Implicit Types (ms : K -> 'I_n -> {ffun 'I_n -> S} -> S -> R).

(** r_k(x^{≤t}), D7's gate at the prefix. *)
Definition prefix_gate (t : 'I_n) x : K -> R := gate_given w qs (before t) x.

(** Σ_k ρ_k(x^{≤t}) m_k(v | x^{≤t}). *)
Definition routed rho ms (t : 'I_n) x (v : S) : R :=
  mixture (rho t x) (fun k => ms k t x) v.

(** I(X^{t+1}; K | X^{≤t}): the information of next token and part under their law given the
    prefix, in the mean over prefixes. *)
Definition next_information (t : 'I_n) : R :=
  \sum_x mixture w qs x *
    part_information L (prefix_gate t x) (fun k => next_token (qs k) t x).

(** E_q KL(r || ρ)(X^{≤t}). *)
Definition router_KL rho (t : 'I_n) : R :=
  \sum_x mixture w qs x * KL L (prefix_gate t x) (rho t x).

Hypotheses (w_law : law w) (qs_law : forall k, law (qs k)).

Let w_ge0 : nonneg w. Proof. by case: w_law. Qed.
Let qs_ge0 k : nonneg (qs k). Proof. by case: (qs_law k). Qed.
Hint Resolve w_ge0 qs_ge0 : core.

Lemma mixture_law : law (mixture w qs).
Proof.
split; first exact: mixture_ge0.
by rewrite sum_mixture => [|k]; [case: w_law | case: (qs_law k)].
Qed.

Lemma gate_causal : causal prefix_gate.
Proof. by move=> t k; apply: gate_given_reads. Qed.

Lemma prefix_parts t x : parts (prefix_gate t x) (fun k => next_token (qs k) t x).
Proof.
move=> k; split=> [v|r_gt0]; first exact: token_ge0.
apply: sum_token; case: (nonneg_case (mass_ge0 (before t) (qs_ge0 k) x)) => // q0.
by move: r_gt0; rewrite /prefix_gate /gate_given /gate q0 mulr0 mul0r ltxx.
Qed.

Lemma next_mixture t x :
  next_token (mixture w qs) t x =1 mixture (prefix_gate t x) (fun k => next_token (qs k) t x).
Proof. by move=> v; apply: token_mixture. Qed.

(** Experts' next-token laws cost in the mean what their sequence laws do. *)
Lemma experts_chain ms : (forall k, causal (ms k)) ->
  (forall k t x, 0 < w k -> covers (ms k t x) (next_token (qs k) t x)) ->
  \sum_t \sum_x mixture w qs x *
    experts_KL L (prefix_gate t x) (fun k => next_token (qs k) t x) (fun k => ms k t x) =
  \sum_k w k * KL L (qs k) (sequence_law (ms k)).
Proof.
move=> ms_causal cov.
transitivity (\sum_k \sum_t w k * \sum_x qs k x * KL L (next_token (qs k) t x) (ms k t x)).
  rewrite [RHS]exchange_big; apply: eq_bigr => t _ /=.
  under eq_bigr do rewrite mulr_sumr; rewrite exchange_big; apply: eq_bigr => k _ /=.
  apply: gate_tower => // x y xy; rewrite /KL; apply: eq_bigr => v _.
  by rewrite (@next_causal (qs k) t v x y xy) (ms_causal k t v _ _ xy).
apply: eq_bigr => k _; rewrite -mulr_sumr.
case: (nonneg_case (w_ge0 k)) => [->|w_gt0]; first by rewrite !mul0r.
by congr (_ * _); rewrite KL_chain // => t x; apply: cov.
Qed.

Lemma covers_next k t x : 0 < w k ->
  covers (next_token (mixture w qs) t x) (next_token (qs k) t x).
Proof.
move=> w_gt0 v q_gt0; rewrite next_mixture.
apply: lt_le_trans (mixture_ge_term k v _ _); first last.
- by move=> j; apply: token_ge0.
- exact: gate_given_ge0.
have m_gt0 : 0 < mass (qs k) (before t) x.
  case: (nonneg_case (mass_ge0 (before t) (qs_ge0 k) x)) => // m0.
  by move: q_gt0; rewrite /next_token /token_given m0 invr0 mulr0 ltxx.
rewrite mulr_gt0 // divr_gt0 ?mulr_gt0 //.
apply: lt_le_trans (mixture_ge_term k x _ _) => //; first by rewrite mulr_gt0.
by move=> j; apply: mass_ge0.
Qed.

(** D10. For a sequence X of n tokens with parts K, I(X; K) = Σ_t I(X^{t+1}; K | X^{≤t}); with
    D10_entropy, H(X) = Σ_k w_k H(X | k) + Σ_t I(X^{t+1}; K | X^{≤t}). All laws may be those given a
    context. *)
Theorem D10 : part_information L w qs = \sum_t next_information t.
Proof.
rewrite part_informationE //; last by move=> k; split; case: (qs_law k).
rewrite [LHS](_ : _ = \sum_k w k * KL L (qs k) (sequence_law (next_token (mixture w qs)))).
  rewrite -experts_chain; [|by move=> k; apply: next_causal|by move=> *; apply: covers_next].
  apply: eq_bigr => t _; apply: eq_bigr => x _; congr (_ * _).
  rewrite part_informationE; [|exact: gate_given_ge0|exact: prefix_parts].
  apply: eq_bigr => k _; congr (_ * _); apply: eq_bigr => v _.
  by rewrite next_mixture.
apply: eq_bigr => k _; case: (nonneg_case (w_ge0 k)) => [->|w_gt0]; first by rewrite !mul0r.
congr (_ * _); apply: eq_bigr => x _.
case: (nonneg_case (qs_ge0 k x)) => [->|q_gt0]; first by rewrite !mul0r.
rewrite sequence_lawE //; first exact: mixture_law.
by apply: lt_le_trans (mixture_ge_term k x _ _) => //; rewrite mulr_gt0.
Qed.

(** D10 with the entropies. *)
Theorem D10_chain :
  entropy L (mixture w qs) = \sum_k w k * entropy L (qs k) + \sum_t next_information t.
Proof. by rewrite D10_entropy // ?D10 // => k; split; case: (qs_law k). Qed.

(** B4. A router ρ at every step, q̂(v | x^{≤t}) = Σ_k ρ_k(x^{≤t}) q̂_k(v | x^{≤t}):
    KL(q || q̂) ≤ Σ_t E_q KL(r || ρ)(X^{≤t}) + Σ_k w_k KL(q_k || q̂_k), the experts given by their
    next-token laws. Router and experts are nonnegative, read the prefix only, and
    ρ_k(x^{≤t}) q̂_k(v | x^{≤t}) > 0 wherever w_k > 0 and q_k(v | x^{≤t}) > 0; that they are laws
    is not needed. *)
Theorem B4 rho ms : causal rho -> (forall k, causal (ms k)) ->
  (forall t x, nonneg (rho t x)) -> (forall k t x, nonneg (ms k t x)) ->
  (forall k t x v, 0 < w k -> 0 < next_token (qs k) t x v -> 0 < rho t x k * ms k t x v) ->
  KL L (mixture w qs) (sequence_law (routed rho ms)) <=
  \sum_t router_KL rho t + \sum_k w k * KL L (qs k) (sequence_law (ms k)).
Proof.
move=> rho_causal ms_causal rho_ge0 ms_ge0 cov.
have cov_parts t x : covers_parts (prefix_gate t x) (fun k => next_token (qs k) t x)
    (rho t x) (fun k => ms k t x).
  move=> k v rq_gt0.
  have [r_gt0 q_gt0] := factors_gt0 (gate_given_ge0 w_ge0 qs_ge0 _ x k)
    (token_ge0 _ t x (qs_ge0 k) v) rq_gt0.
  apply: cov => //; case: (nonneg_case (w_ge0 k)) => // w0.
  by move: r_gt0; rewrite /prefix_gate /gate_given /gate w0 !mul0r ltxx.
rewrite -experts_chain //; last first.
  move=> k t x w_gt0 v q_gt0.
  by have [] := factors_gt0 (rho_ge0 t x k) (ms_ge0 k t x v) (cov k t x v w_gt0 q_gt0).
rewrite KL_chain; last first.
- move=> t x v; rewrite next_mixture.
  exact: covers_mixture (gate_given_ge0 w_ge0 qs_ge0 _ x) (fun k => token_ge0 _ t x (qs_ge0 k))
    (rho_ge0 t x) (fun k => ms_ge0 k t x) (cov_parts t x) v.
- move=> t v x y xy; apply: eq_bigr => k _.
  by rewrite (rho_causal t k _ _ xy) (ms_causal k t v _ _ xy).
- exact: mixture_law.
rewrite -big_split; apply: ler_sum => t _ /=; rewrite -big_split; apply: ler_sum => x _ /=.
rewrite -mulrDr; apply: (ler_wpmul2l (mixture_ge0 w_ge0 qs_ge0 x)); rewrite addrC.
apply: le_trans (B3 L (gate_given_ge0 w_ge0 qs_ge0 _ x) (prefix_parts t x) (rho_ge0 t x)
  (fun k => ms_ge0 k t x) (cov_parts t x)).
by rewrite le_eqVlt; apply/orP; left; apply/eqP; apply: eq_bigr => v _; rewrite !next_mixture.
Qed.

(** A causal router over causal experts gives a law over the next token, or less. *)
Lemma routed_causal rho ms : causal rho -> (forall k, causal (ms k)) -> causal (routed rho ms).
Proof.
move=> rho_causal ms_causal t v x y xy; apply: eq_bigr => k _.
by rewrite (rho_causal t k _ _ xy) (ms_causal k t v _ _ xy).
Qed.

Lemma routed_sub_laws rho ms : sub_laws rho -> (forall k, sub_laws (ms k)) ->
  sub_laws (routed rho ms).
Proof.
move=> rho_sub ms_sub t x; have [rho_ge0 rho1] := rho_sub t x; split=> [v|].
  by apply: mixture_ge0 => // k; case: (ms_sub k t x).
rewrite /routed /mixture exchange_big; apply: le_trans rho1; apply: ler_sum => k _ /=.
by rewrite -mulr_sumr -[X in _ <= X]mulr1 ler_wpmul2l //; case: (ms_sub k t x).
Qed.

(** B6 along a sequence: for a law q whose next-token laws are the mixtures of experts m_k with
    gates ρ at every prefix of positive mass, the gates cut to sets A of mass M_t > 0 give
    TV(q, top) ≤ Σ_t E_q[1 − M_t]. Gates, sets and experts read the prefix only; the experts give
    laws (or less). *)
Theorem B6_sequences q rho ms (A : 'I_n -> {ffun 'I_n -> S} -> pred K) :
  law q -> causal rho -> (forall (t : 'I_n) x y, agree_on (before t) x y -> A t x =1 A t y) ->
  (forall k, causal (ms k)) -> (forall k, sub_laws (ms k)) -> (forall t x, nonneg (rho t x)) ->
  (forall t x, 0 < q x -> law (rho t x)) ->
  (forall t x, 0 < q x -> 0 < kept_mass (A t x) (rho t x)) ->
  (forall t x, 0 < q x -> next_token q t x =1 routed rho ms t x) ->
  variation q (sequence_law (routed (fun t x => top_gate (A t x) (rho t x)) ms)) <=
  \sum_t \sum_x q x * (1 - kept_mass (A t x) (rho t x)).
Proof.
move=> q_law rho_causal A_causal ms_causal ms_sub rho_ge0 rho_law M_gt0 qE.
have kept_reads (t : 'I_n) x y : agree_on (before t) x y ->
    kept_mass (A t x) (rho t x) = kept_mass (A t y) (rho t y).
  move=> xy; apply: eq_big => [k|k _]; first exact: A_causal xy k.
  exact: rho_causal xy.
have top_causal : causal (fun t x => top_gate (A t x) (rho t x)).
  move=> t k x y xy; rewrite /top_gate (A_causal t x y xy k) (kept_reads t x y xy).
  by rewrite (rho_causal t k _ _ xy).
have top_sub : sub_laws (fun t x => top_gate (A t x) (rho t x)).
  move=> t x; split; first exact: top_gate_ge0.
  have M_ge0 : 0 <= kept_mass (A t x) (rho t x) by apply: sumr_ge0 => k _.
  case: (nonneg_case M_ge0) => [M0|M_gt]; last by rewrite sum_top_gate.
  by rewrite big1 ?ler01 // => k _; rewrite /top_gate M0 invr0 mulr0; case: ifP.
apply: le_trans (variation_chain q_law (routed_causal top_causal ms_causal)
  (routed_sub_laws top_sub ms_sub)) _.
have [q_ge0 _] := q_law; apply: ler_sum => t _; apply: ler_sum => x _.
case: (nonneg_case (q_ge0 x)) => [->|qx]; first by rewrite !mul0r.
apply: (ler_wpmul2l (ltW qx)).
apply: le_trans (B6 (rho_law t x qx) (fun k => ms_sub k t x) (M_gt0 t x qx)).
rewrite le_eqVlt; apply/orP; left; apply/eqP; congr (_ * _); apply: eq_bigr => v _.
by rewrite qE.
Qed.

(** B5. TV(q, q̂) ≤ Σ_t E_q[ TV(r, ρ) + Σ_k r_k TV(q_k, q̂_k) ] at the prefixes, q̂ made by router
    and experts. Both give laws (or less) at every prefix, and read the prefix only; no supports are
    needed. *)
Theorem B5 rho ms : causal rho -> (forall k, causal (ms k)) ->
  sub_laws rho -> (forall k, sub_laws (ms k)) ->
  variation (mixture w qs) (sequence_law (routed rho ms)) <=
  \sum_t \sum_x mixture w qs x * (variation (prefix_gate t x) (rho t x) +
    \sum_k prefix_gate t x k * variation (next_token (qs k) t x) (ms k t x)).
Proof.
move=> rho_causal ms_causal rho_sub ms_sub.
apply: le_trans (variation_chain mixture_law (routed_causal rho_causal ms_causal)
  (routed_sub_laws rho_sub ms_sub)) _.
apply: ler_sum => t _; apply: ler_sum => x _.
apply: (ler_wpmul2l (mixture_ge0 w_ge0 qs_ge0 x)).
apply: le_trans (variation_mixture (rho t x) (fun k => next_token (qs k) t x)
  (gate_given_ge0 w_ge0 qs_ge0 (before t) x) (fun k => ms_sub k t x)).
rewrite le_eqVlt; apply/orP; left; apply/eqP; congr (_ * _); apply: eq_bigr => v _.
by rewrite next_mixture.
Qed.

Lemma next_sub_laws q : nonneg q -> sub_laws (next_token q).
Proof. by move=> q_ge0 t x; split; [exact: token_ge0 | exact: sum_token_le1]. Qed.

Lemma prefix_gate_law t x : 0 < mixture w qs x -> law (prefix_gate t x).
Proof. by move=> qx; apply: gate_given_law => //; apply: mass_gt0 => //; apply: mixture_ge0. Qed.

Lemma variation_delta (r : K -> R) b : law r -> variation r (delta b) = 1 - r b.
Proof.
move=> [r_ge0 r1]; rewrite /variation (bigD1 b) //= /delta eqxx distrC.
have -> : \sum_(k | k != b) `|r k - (k == b)%:R| = 1 - r b.
  rewrite -r1 [in RHS](bigD1 b) //= addrC addKr; apply: eq_bigr => k /negPf ->.
  by rewrite subr0 ger0_norm.
rewrite mulr1n ger0_norm; first by field.
by rewrite subr_ge0 -r1 sum_ge_term.
Qed.

(** B7. Exact experts, one at a time, chosen by the prefix: TV(q, top-1) ≤ Σ_t E_q[1 − r_b], where b
    is the expert chosen at X^{≤t} and r D7's gate there. The choice may be any function of the
    prefix: that it is the likeliest is not needed. *)
Theorem B7 (best : 'I_n -> {ffun 'I_n -> S} -> K) :
  (forall (t : 'I_n) x y, agree_on (before t) x y -> best t x = best t y) ->
  variation (mixture w qs) (sequence_law (fun t x => next_token (qs (best t x)) t x)) <=
  \sum_t \sum_x mixture w qs x * (1 - prefix_gate t x (best t x)).
Proof.
move=> best_causal; pose rho t x := delta (best t x) : K -> R.
have rho_causal : causal rho by move=> t k x y /best_causal; rewrite /rho => ->.
have rho_sub : sub_laws rho by move=> t x; apply/law_sub/delta_law.
have := B5 rho_causal (fun k => @next_causal (qs k)) rho_sub (fun k => next_sub_laws (qs_ge0 k)).
rewrite (_ : variation _ _ = variation (mixture w qs)
    (sequence_law (fun t x => next_token (qs (best t x)) t x))); last first.
  congr (_ * _); apply: eq_bigr => x _; congr `|_ - _|; apply: eq_bigr => t _.
  exact: (sum_delta (best t x) (fun k => next_token (qs k) t x (x t))).
move=> /le_trans; apply; apply: ler_sum => t _; apply: ler_sum => x _.
case: (nonneg_case (mixture_ge0 w_ge0 qs_ge0 x)) => [->|qx]; first by rewrite !mul0r.
rewrite variation_delta; last exact: prefix_gate_law.
rewrite [X in _ * (_ + X) <= _]big1 ?addr0 // => k _.
by rewrite variation_self mulr0.
Qed.

(** B7, as the ledger has it, any tie-break: TV(q, top-1) ≤ Σ_t E_q[1 − max_k r_k]. *)
Theorem B7_likeliest (best : 'I_n -> {ffun 'I_n -> S} -> K) :
  (forall (t : 'I_n) x y, agree_on (before t) x y -> best t x = best t y) ->
  (forall t x k, prefix_gate t x k <= prefix_gate t x (best t x)) ->
  variation (mixture w qs) (sequence_law (fun t x => next_token (qs (best t x)) t x)) <=
  \sum_t \sum_x mixture w qs x * (1 - \big[Order.max/0]_k prefix_gate t x k).
Proof.
move=> best_causal best_max; apply: le_trans (B7 best_causal) _.
apply: ler_sum => t _; apply: ler_sum => x _.
apply: (ler_wpmul2l (mixture_ge0 w_ge0 qs_ge0 x)); rewrite ler_add2l ler_opp2.
apply: (big_ind (fun a => a <= prefix_gate t x (best t x))) => [|a b a_le b_le|k _].
- exact: gate_given_ge0.
- by rewrite le_maxl a_le.
- exact: best_max.
Qed.

(** The parts are functions of the sequence: each x is in one part at most. *)
Definition disjoint_parts (X : Type) (q : K -> X -> R) :=
  forall (k j : K) (y : X), 0 < w k * q k y -> 0 < w j * q j y -> k = j.

(** B9. Hard clusters computed from the whole sequence: with each sequence scored by its own
    cluster's law, the mean negative log-likelihood Σ_k w_k H(X | k) lies H(K) below H(X). *)
Theorem B9 : disjoint_parts qs ->
  entropy L (mixture w qs) - \sum_k w k * entropy L (qs k) = entropy L w.
Proof.
move=> hard; have qsP : parts w qs by move=> k; split; case: (qs_law k).
rewrite D10_entropy // addrC addKr part_informationE // /entropy -sumrN.
apply: eq_bigr => k _; rewrite -mulrN.
case: (nonneg_case (w_ge0 k)) => [->|w_gt0]; first by rewrite !mul0r.
congr (_ * _); have [_ qs1] := qs_law k; rewrite -[RHS]mul1r -qs1 mulr_suml.
apply: eq_bigr => x _; case: (nonneg_case (qs_ge0 k x)) => [->|q_gt0]; first by rewrite !mul0r.
rewrite -lnV //; congr (_ * L _).
have -> : mixture w qs x = w k * qs k x.
  rewrite /mixture (bigD1 k) //= big1 ?addr0 // => j jk.
  case: (nonneg_case (mulr_ge0 (w_ge0 j) (qs_ge0 j x))) => // wq_gt0.
  by move: jk; rewrite (hard j k x) ?eqxx // mulr_gt0.
by field; rewrite !lt0r_neq0.
Qed.

(** B9, soft clusters: it lies I(X; K) below. *)
Theorem B9_soft :
  entropy L (mixture w qs) - \sum_k w k * entropy L (qs k) = part_information L w qs.
Proof.
rewrite D10_entropy //; first by rewrite addrC addKr.
by move=> k; split; case: (qs_law k).
Qed.

(** B9, honest gates: a gate ρ that reads the prefix only, over experts that do, has a mean negative
    log-likelihood of at least H(X), if the next-token laws they make are positive where q's are. *)
Theorem B9_gate rho ms : causal rho -> (forall k, causal (ms k)) ->
  sub_laws rho -> (forall k, sub_laws (ms k)) ->
  (forall t x, covers (routed rho ms t x) (next_token (mixture w qs) t x)) ->
  entropy L (mixture w qs) <= cross_entropy L (mixture w qs) (sequence_law (routed rho ms)).
Proof.
move=> rho_causal ms_causal rho_sub ms_sub cov; have q_ge0 := mixture_ge0 w_ge0 qs_ge0.
rewrite -subr_ge0 -KL_cross_entropy //; last first.
  by move=> x qx; apply: prodr_gt0 => t _; apply: cov; apply: next_own_gt0.
rewrite KL_chain //; [|exact: mixture_law|exact: routed_causal].
apply: sumr_ge0 => t _; apply: sumr_ge0 => x _.
case: (nonneg_case (q_ge0 x)) => [->|qx]; first by rewrite mul0r.
apply: mulr_ge0 => //; have [m_ge0 m1] := routed_sub_laws rho_sub ms_sub t x.
exact: gibbs (next_law t q_ge0 qx) m_ge0 m1 (cov t x).
Qed.

(** B9, the Bayes gate: with D7 over the exact experts it is H(X). *)
Theorem B9_bayes : cross_entropy L (mixture w qs)
    (sequence_law (routed prefix_gate (fun k => next_token (qs k)))) =
  entropy L (mixture w qs).
Proof.
congr (- _); apply: eq_bigr => x _.
case: (nonneg_case (mixture_ge0 w_ge0 qs_ge0 x)) => [->|qx]; first by rewrite !mul0r.
congr (_ * L _); rewrite -[RHS](sequence_lawE mixture_law qx); apply: eq_bigr => t _.
by rewrite next_mixture.
Qed.

End Routers.
End Chain.

Section Decentralized.
Variables (R : realFieldType) (L : logarithm R) (H Z I V K : finType).
Variables (c : H -> Z -> R) (y : I -> H -> V) (w : K -> R) (pis : K -> H -> R).
Implicit Types (phs : K -> Z -> I -> V -> R) (rho : Z -> K -> R) (omega : Z -> I -> R).

(** p_t^k(z), and r_k(z) = w_k p_t^k(z) / p_t(z). *)
Definition part_path (k : K) : Z -> R := marginal c (pis k).
Definition state_gate (z : Z) : K -> R := gate w part_path z.

(** Σ_k ρ_k(z) p̂_k^i(v | z). *)
Definition mixed_tokens rho phs (z : Z) (i : I) (v : V) : R :=
  mixture (rho z) (fun k => phs k z i) v.

(** J(θ, φ) = Σ_k w_k L_k(θ_k) + E[−log ρ_K(Z; φ)]. *)
Definition decentralized_loss omega phs rho : R :=
  \sum_k w k * token_loss L c (pis k) y omega (phs k) + router_loss L w part_path rho.

(** The posteriors of part k alone. *)
Definition part_posterior (k : K) : Z -> I -> V -> R := token_posterior c (pis k) y.

Hypotheses (w_ge0 : nonneg w) (c_ge0 : forall h, nonneg (c h)).
Hypothesis pis_ge0 : forall k, nonneg (pis k).

Lemma part_path_ge0 k : nonneg (part_path k).
Proof. exact: marginal_ge0. Qed.

Lemma marginal_mixture z : marginal c (mixture w pis) z = mixture w part_path z.
Proof.
rewrite /marginal /mixture; under eq_bigr do rewrite mulr_sumr.
rewrite exchange_big; apply: eq_bigr => k _ /=; rewrite mulr_sumr.
by apply: eq_bigr => h _; rewrite mulrCA.
Qed.

Lemma posterior_mixture z i v : token_posterior c (mixture w pis) y z i v =
  mixture (state_gate z) (fun k => part_posterior k z i) v.
Proof.
rewrite /token_posterior /mean /posterior marginal_mixture.
transitivity (\sum_h \sum_k w k * (c h z * pis k h * delta (y i h) v) / mixture w part_path z).
  apply: eq_bigr => h _; rewrite -mulr_suml {1}/mixture.
  rewrite mulr_sumr !mulr_suml; apply: eq_bigr => k _; ring.
rewrite exchange_big; apply: eq_bigr => k _ /=; rewrite -mulr_suml -mulr_sumr -meanE //.
by rewrite /state_gate /gate /part_posterior /token_posterior /part_path; ring.
Qed.

(** At a minimum of J the router is the posterior and each expert its part's posterior. *)
Lemma decentralized_minimum omega phs rho z : (forall z i, 0 < omega z i) ->
  (forall k, predictor c (pis k) y (phs k)) -> router w part_path rho ->
  decentralized_loss omega phs rho <= decentralized_loss omega part_posterior state_gate ->
  0 < mixture w part_path z ->
  (forall k, rho z k = state_gate z k) /\
  (forall k i v, 0 < w k * part_path k z -> phs k z i v = part_posterior k z i v).
Proof.
move=> om_gt0 phsP rhoP J_le m_gt0; have om_ge0 x j := ltW (om_gt0 x j).
pose gain k := token_loss L c (pis k) y omega (phs k) -
  token_loss L c (pis k) y omega (part_posterior k).
have gain_ge0 k : 0 <= gain k by rewrite subr_ge0; apply: L1_minimum.
have gains_ge0 k : 0 <= w k * gain k by rewrite mulr_ge0.
have router_ge0 := D11 L w_ge0 part_path_ge0 rhoP.
move: J_le; rewrite -subr_le0 /decentralized_loss opprD addrACA -sumrB.
under eq_bigr do rewrite -mulrBr.
rewrite -/(gain _) => J_le.
have sum_ge0 : 0 <= \sum_k w k * gain k by apply: sumr_ge0 => k _.
have sum0 : \sum_k w k * gain k = 0.
  apply/eqP; rewrite eq_le sum_ge0 andbT; apply: le_trans J_le.
  by rewrite ler_addl subr_ge0.
have router_le : router_loss L w part_path rho <= router_loss L w part_path state_gate.
  by rewrite -subr_le0; apply: le_trans J_le; rewrite ler_addr.
split=> [k|k i v wp_gt0]; first exact: (D11_unique w_ge0 part_path_ge0 rhoP router_le k m_gt0).
have [w_gt0 p_gt0] := factors_gt0 (w_ge0 k) (part_path_ge0 k z) wp_gt0.
apply: (L1_unique (L := L) c_ge0 (pis_ge0 k) om_gt0 (phsP k)) => //.
have /eqP := sum_nonneg_eq0 gains_ge0 sum0 k; rewrite mulf_eq0 gt_eqF //= /gain.
by rewrite subr_eq0 => /eqP ->.
Qed.

(** D12, the posteriors. At a minimum of J over all functions the router's mixture of the experts is
    the posterior of the whole, where p(z) > 0. Experts and router give laws (or less) that are
    positive where those of their parts are, and the weights ω are positive. *)
Theorem D12_posterior omega phs rho : (forall z i, 0 < omega z i) ->
  (forall k, predictor c (pis k) y (phs k)) -> router w part_path rho ->
  decentralized_loss omega phs rho <= decentralized_loss omega part_posterior state_gate ->
  forall z i v, 0 < mixture w part_path z ->
  mixed_tokens rho phs z i v = token_posterior c (mixture w pis) y z i v.
Proof.
move=> om_gt0 phsP rhoP J_le z i v m_gt0.
have [rhoE phsE] := decentralized_minimum om_gt0 phsP rhoP J_le m_gt0.
rewrite posterior_mixture; apply: eq_bigr => k _; rewrite rhoE.
case: (nonneg_case (mulr_ge0 (w_ge0 k) (part_path_ge0 k z))) => [wp0|wp_gt0].
  by rewrite /state_gate /gate wp0 !mul0r.
by rewrite phsE.
Qed.

(** The velocity λ^i(z) [p(v) − δ_{z^i}(v)] that a law p of the data token makes; V5 and Q3. *)
Definition token_velocity (lambda : Z -> I -> R) (at_ : Z -> I -> V) (p : Z -> I -> V -> R)
  (z : Z) (i : I) (v : V) : R := lambda z i * (p z i v - delta (at_ z i) v).

(** D12. At a minimum of the decentralized objective J over all functions Σ_k ρ_k(z) û^k(v, z) =
    u(v, z), the velocity of the whole, where p(z) > 0 and for any factor λ. *)
Theorem D12 lambda at_ omega phs rho : (forall z i, 0 < omega z i) ->
  (forall k, predictor c (pis k) y (phs k)) -> router w part_path rho ->
  decentralized_loss omega phs rho <= decentralized_loss omega part_posterior state_gate ->
  forall z i v, 0 < mixture w part_path z ->
  mixture (rho z) (fun k => token_velocity lambda at_ (phs k) z i) v =
  token_velocity lambda at_ (token_posterior c (mixture w pis) y) z i v.
Proof.
move=> om_gt0 phsP rhoP J_le z i v m_gt0.
rewrite /token_velocity -(D12_posterior om_gt0 phsP rhoP J_le) //.
have [rhoE _] := decentralized_minimum om_gt0 phsP rhoP J_le m_gt0.
have rho1 : \sum_k rho z k = 1.
  by rewrite (eq_bigr _ (fun k _ => rhoE k)) sum_gate.
rewrite -[delta _ v]mul1r -rho1 mulr_suml /mixed_tokens /mixture -sumrB mulr_sumr.
by apply: eq_bigr => k _; ring.
Qed.

(** D12, that J has this minimum: no experts and router do better. *)
Theorem D12_minimum omega phs rho : (forall z i, 0 <= omega z i) ->
  (forall k, predictor c (pis k) y (phs k)) -> router w part_path rho ->
  decentralized_loss omega part_posterior state_gate <= decentralized_loss omega phs rho.
Proof.
move=> om_ge0 phsP rhoP; have router_le := D11 L w_ge0 part_path_ge0 rhoP.
rewrite /decentralized_loss; apply: ler_add; last exact: router_le.
by apply: ler_sum => k _; apply: (ler_wpmul2l (w_ge0 k)); apply: L1_minimum.
Qed.

(** D14. The cross-entropy of Σ_k ρ_k p̂_k exceeds the best by at most Σ_k w_k excess_k plus N times
    the router's excess: the router is paid once per predicted token. ω = 1; experts and router are
    nonnegative, and positive where the laws of their parts are; that they are laws is not
    needed. *)
Theorem D14 phs rho (one := fun (_ : Z) (_ : I) => 1 : R) :
  (forall z, nonneg (rho z)) -> (forall k z i, nonneg (phs k z i)) ->
  (forall z k, 0 < w k * part_path k z -> 0 < rho z k) ->
  (forall k, covers_tokens c (pis k) y (phs k)) ->
  token_loss L c (mixture w pis) y one (mixed_tokens rho phs) -
    token_loss L c (mixture w pis) y one (token_posterior c (mixture w pis) y) <=
  \sum_k w k * (token_loss L c (pis k) y one (phs k) -
    token_loss L c (pis k) y one (part_posterior k)) +
  #|I|%:R * (router_loss L w part_path rho - router_loss L w part_path state_gate).
Proof.
move=> rho_ge0 phs_ge0 rho_gt0 cov; rewrite D11_excess //; last exact: part_path_ge0.
have mix_ge0 : nonneg (mixture w pis) by apply: mixture_ge0.
have gate_gt z k : 0 < state_gate z k -> 0 < w k * part_path k z.
  move=> r_gt0; case: (nonneg_case (mulr_ge0 (w_ge0 k) (part_path_ge0 k z))) => // wp0.
  by move: r_gt0; rewrite /state_gate /gate wp0 mul0r ltxx.
have post_ge0 k z i : 0 < part_path k z -> nonneg (part_posterior k z i).
  by move=> p_gt0; case: (token_posterior_law y c_ge0 (pis_ge0 k) i p_gt0).
have off_post k z i v : part_path k z = 0 -> part_posterior k z i v = 0.
  by move=> p0; rewrite /part_posterior /token_posterior /mean big1 // => h _;
     rewrite /posterior -/(part_path k z) p0 invr0 mulr0 mul0r.
have post_ge k z i : nonneg (part_posterior k z i).
  move=> v; case: (nonneg_case (part_path_ge0 k z)) => [p0|p_gt0]; last exact: post_ge0.
  by rewrite off_post.
have cov_parts z i : covers_parts (state_gate z) (fun k => part_posterior k z i)
    (rho z) (fun k => phs k z i).
  move=> k v rp_gt0.
  have [r_gt0 p_gt0] := factors_gt0 (gate_ge0 z w_ge0 part_path_ge0 k) (post_ge k z i v) rp_gt0.
  have wp_gt0 := gate_gt z k r_gt0.
  have [_ pz_gt0] := factors_gt0 (w_ge0 k) (part_path_ge0 k z) wp_gt0.
  by rewrite mulr_gt0 ?rho_gt0 // (cov k z i).
rewrite L1 //; last first.
  move=> z i m_gt0 v; rewrite posterior_mixture => p_gt0.
  exact: covers_mixture (gate_ge0 z w_ge0 part_path_ge0) (fun k => post_ge k z i) (rho_ge0 z)
    (fun k => phs_ge0 k z i) (cov_parts z i) v p_gt0.
under [X in _ <= X + _]eq_bigr do rewrite L1 //.
rewrite /token_excess /router_excess.
under [X in _ <= X + _]eq_bigr do rewrite mulr_sumr.
rewrite [X in _ <= X + _]exchange_big mulr_sumr -big_split; apply: ler_sum => z _ /=.
rewrite marginal_mixture -/(state_gate z).
case: (nonneg_case (mixture_ge0 w_ge0 part_path_ge0 z)) => [m0|m_gt0].
  rewrite m0 !mul0r mulr0 addr0; apply: sumr_ge0 => k _.
  have wp0 := sum_nonneg_eq0 (fun j => mulr_ge0 (w_ge0 j) (part_path_ge0 j z)) m0 k.
  by rewrite mulrA -/(part_path k z) wp0 mul0r.
have -> : \sum_k w k * (marginal c (pis k) z *
      \sum_i one z i * KL L (token_posterior c (pis k) y z i) (phs k z i)) =
    mixture w part_path z * \sum_i \sum_k state_gate z k *
      KL L (part_posterior k z i) (phs k z i).
  rewrite exchange_big mulr_sumr; apply: eq_bigr => k _ /=.
  rewrite mulrA -/(part_path k z) -(gateE z k w_ge0 part_path_ge0) -mulrA.
  rewrite -[in RHS]mulr_sumr.
  by congr (_ * (_ * _)); apply: eq_bigr => i _; rewrite mul1r.
rewrite mulrCA -mulrDr; apply: (ler_wpmul2l (ltW m_gt0)).
rewrite mulr_natl -sumr_const -big_split; apply: ler_sum => i _ /=; rewrite mul1r.
have partsP : parts (state_gate z) (fun k => part_posterior k z i).
  move=> k; split=> [|r_gt0]; first exact: post_ge.
  have [_ pz_gt0] := factors_gt0 (w_ge0 k) (part_path_ge0 k z) (gate_gt z k r_gt0).
  by case: (token_posterior_law y c_ge0 (pis_ge0 k) i pz_gt0).
apply: le_trans (B3 L (gate_ge0 z w_ge0 part_path_ge0) partsP (rho_ge0 z)
  (fun k => phs_ge0 k z i) (cov_parts z i)).
rewrite le_eqVlt; apply/orP; left; apply/eqP; apply: eq_bigr => v _.
by rewrite posterior_mixture.
Qed.

End Decentralized.

Section Parallel.
Variables (R : realFieldType) (L : logarithm R) (I S : finType).
Implicit Types (q : {ffun I -> S} -> R) (A B : pred I).

(** H(X^B | X^A) = −E log q(X^B | X^A). *)
Definition conditional_entropy q A B : R :=
  - \sum_x q x * L (mass q (fun j => A j || B j) x / mass q A x).

(** E_q TC(X^B | X^A) = Σ_{i in B} H(X^i | X^A) − H(X^B | X^A). *)
Definition conditional_correlation q A B : R :=
  \sum_(i | B i) conditional_entropy q A (pred1 i) - conditional_entropy q A B.

(** For one token it is the mean entropy of its law given x^A. *)
Lemma conditional_entropyE q A i : nonneg q ->
  conditional_entropy q A (pred1 i) = \sum_x q x * entropy L (token_given q A i x).
Proof.
move=> q_ge0; rewrite /conditional_entropy /entropy.
under [RHS]eq_bigr do rewrite mulrN; rewrite sumrN; congr (- _).
rewrite -(@tower R I S q A i (fun x v => L (token_given q A i x v))) // => [|v x y xy].
  by apply: eq_bigr => x _; rewrite token_own.
by rewrite (token_reads q i v xy).
Qed.

Section Blocks.
Variables (T : nat) (block : I -> 'I_T).

(** block(i) is the step that draws position i; the positions drawn before step t. *)
Definition revealed (t : nat) : pred I := fun j => (block j < t)%N.

(** The tokens of a set drawn independently, each from its exact posterior given the sets before:
    q_parallel(x) = Π_i q(x^i | x^{B_1 ∪ … ∪ B_{s−1}}), s = block(i). *)
Definition parallel_law q (x : {ffun I -> S}) : R :=
  \prod_i token_given q (revealed (block i)) i x (x i).

Lemma revealed_next (s : 'I_T) : revealed s.+1 =1 (fun j => revealed s j || (block j == s)).
Proof. by move=> j; rewrite /revealed ltnS leq_eqVlt orbC -val_eqE. Qed.

Lemma ln_blocks q x : law q -> 0 < q x ->
  L (q x) = \sum_(s < T) L (mass q (revealed s.+1) x / mass q (revealed s) x).
Proof.
move=> [q_ge0 q1] qx; have m_gt0 A : 0 < mass q A x by apply: lt_le_trans qx (mass_ge A x q_ge0).
have none : mass q (revealed 0) x = 1.
  by rewrite -q1; apply: eq_bigl => y; apply/agree_onP => i.
have all : mass q (revealed T) x = q x.
  rewrite /mass (big_pred1 x) // => y; apply/agree_onP/eqP => [xy|-> //].
  by apply/ffunP => i; rewrite xy // /revealed ltn_ord.
rewrite -(big_mkord predT (fun t => L (mass q (revealed t.+1) x / mass q (revealed t) x))).
suff steps N : \sum_(0 <= t < N) L (mass q (revealed t.+1) x / mass q (revealed t) x) =
    L (mass q (revealed N) x) by rewrite steps all.
elim: N => [|N IH]; first by rewrite big_geq // none ln1.
by rewrite big_nat_recr //= IH ln_div // addrC subrK.
Qed.

(** Q6. KL(q || q_parallel) = Σ_s E_q TC(X^{B_s} | X^{B_1 ∪ … ∪ B_{s−1}}) for any law q and fixed
    sets that partition the positions. That the model's draws are the exact token posteriors given
    the revealed tokens is its definition here; by P7 a source of masks gives these. *)
Theorem Q6 q : law q ->
  KL L q (parallel_law q) =
  \sum_(s < T) conditional_correlation q (revealed s) (fun i => block i == s).
Proof.
move=> q_law; have [q_ge0 _] := q_law.
have m_gt0 A x : 0 < q x -> 0 < mass q A x by move=> qx; apply: lt_le_trans qx (mass_ge A x q_ge0).
pose token i x := L (mass q (with_token (revealed (block i)) i) x / mass q (revealed (block i)) x).
pose step (s : 'I_T) x := L (mass q (revealed s.+1) x / mass q (revealed s) x).
transitivity (\sum_x q x * (\sum_s step s x - \sum_i token i x)).
  apply: eq_bigr => x _; case: (nonneg_case (q_ge0 x)) => [->|qx]; first by rewrite !mul0r.
  have t_gt0 i : 0 < token_given q (revealed (block i)) i x (x i).
    by rewrite token_own divr_gt0 ?m_gt0.
  rewrite ln_div ?prodr_gt0 // ln_blocks // ln_prod //; congr (_ * (_ - _)).
  by apply: eq_bigr => i _; rewrite token_own.
under eq_bigr do rewrite mulrBr !mulr_sumr.
rewrite sumrB exchange_big /= [X in _ - X]exchange_big /=.
rewrite [X in _ - X](partition_big block predT) //= -sumrB; apply: eq_bigr => s _.
rewrite /conditional_correlation /conditional_entropy opprK addrC; congr (_ + _).
  rewrite -sumrN; apply: eq_bigr => i /eqP is_; congr (- _); apply: eq_bigr => x _.
  by rewrite /token is_.
by apply: eq_bigr => x _; rewrite /step (mass_ext _ _ (revealed_next s)).
Qed.

(** Q6, sets of one: it is 0 where no two positions are drawn at once. *)
Theorem Q6_one_position q : law q -> injective block -> KL L q (parallel_law q) = 0.
Proof.
move=> q_law block_inj; have [q_ge0 _] := q_law; rewrite Q6 // big1 // => s _.
rewrite /conditional_correlation; case: (pickP (fun i => block i == s)) => [i is_|none].
  rewrite (big_pred1 i) => [|j]; last first.
    by apply/eqP/eqP => [js|->]; [apply: block_inj; rewrite js (eqP is_) | exact/eqP].
  apply/eqP; rewrite subr_eq0; apply/eqP; congr (- _); apply: eq_bigr => x _.
  congr (_ * L (_ / _)); apply: mass_ext => j; congr (_ || _).
  by apply/eqP/eqP => [->|js]; [exact/eqP | apply: block_inj; rewrite js (eqP is_)].
rewrite big_pred0 // sub0r opprK big1 // => x _.
case: (nonneg_case (q_ge0 x)) => [->|qx]; first by rewrite mul0r.
rewrite (@mass_ext _ _ _ q _ (revealed s)) => [|j]; last by rewrite none orbF.
rewrite mulfV ?ln1 ?mulr0 // lt0r_neq0 //; exact: lt_le_trans qx (mass_ge _ x q_ge0).
Qed.

End Blocks.

(** The law of token i under a law of sequences, and TC = Σ_i H(X^i) − H(X). *)
Definition token_law q (i : I) (v : S) : R := \sum_(y : {ffun I -> S} | y i == v) q y.
Definition total_correlation q : R := \sum_i entropy L (token_law q i) - entropy L q.

Lemma token_law_ge q (x : {ffun I -> S}) i : nonneg q -> q x <= token_law q i (x i).
Proof.
move=> q_ge0; rewrite /token_law (bigD1 x) //= ler_addl.
by apply: sumr_ge0 => y _.
Qed.

(** TC is the divergence from the product of the tokens' laws. *)
Lemma total_correlationE q : nonneg q -> KL L q (product_law (token_law q)) = total_correlation q.
Proof.
move=> q_ge0.
have tokens i : entropy L (token_law q i) = - \sum_x q x * L (token_law q i (x i)).
  congr (- _); rewrite [RHS](partition_big (fun x : {ffun I -> S} => x i) predT) //=.
  apply: eq_bigr => v _; rewrite {1}/token_law mulr_suml.
  by apply: eq_bigr => x /eqP <-.
rewrite /total_correlation /entropy opprK addrC (eq_bigr _ (fun i _ => tokens i)) sumrN.
rewrite exchange_big -sumrB; apply: eq_bigr => x _ /=; rewrite -mulr_sumr -mulrBr.
case: (nonneg_case (q_ge0 x)) => [->|qx]; first by rewrite !mul0r.
have t_gt0 i : 0 < token_law q i (x i) by apply: lt_le_trans qx (token_law_ge x i q_ge0).
by rewrite ln_div ?prodr_gt0 // ln_prod.
Qed.

Section Runs.
Variables (p : nat -> {ffun I -> S} -> R) (J : nat -> {ffun I -> S} -> {ffun I -> S} -> R).

(** P(X_{t+1} = x' | X_t = x) of the process with the joint laws J_t of neighboring times. *)
Definition step_given (t : nat) x x' : R := J t x x' / p t x.

(** The parallel sampler draws the tokens of X_{t+1} independently, each from its exact law given
    X_t; its law after t steps, from the same source. *)
Definition parallel_step (t : nat) x : {ffun I -> S} -> R :=
  product_law (token_law (step_given t x)).
Fixpoint parallel_run (t : nat) : {ffun I -> S} -> R :=
  if t is t'.+1 then mixture (parallel_run t') (parallel_step t') else p 0%N.

Hypothesis J_ge0 : forall t x, nonneg (J t x).
Hypothesis J_left : forall t x, \sum_x' J t x x' = p t x.
Hypothesis J_right : forall t x', \sum_x J t x x' = p t.+1 x'.

Let p_ge0 t : nonneg (p t).
Proof. by move=> x; rewrite -J_left sumr_ge0. Qed.
Hint Resolve p_ge0 : core.

Lemma step_given_ge0 t x : nonneg (step_given t x).
Proof. by move=> x'; rewrite divr_ge0. Qed.

Lemma step_mixture t : mixture (p t) (step_given t) =1 p t.+1.
Proof.
move=> x'; rewrite -J_right; apply: eq_bigr => x _; rewrite /step_given mulrCA.
case: (nonneg_case (p_ge0 t x)) => [p0|p_gt0]; last by rewrite mulfV ?mulr1 // lt0r_neq0.
by rewrite p0 mul0r mulr0 (sum_nonneg_eq0 (J_ge0 t x)) // J_left.
Qed.

Lemma parallel_step_ge0 t x : nonneg (parallel_step t x).
Proof.
by move=> x'; apply: prodr_ge0 => i _; apply: sumr_ge0 => y _; apply: step_given_ge0.
Qed.

Lemma parallel_run_ge0 t : nonneg (parallel_run t).
Proof.
elim: t => [|t IH]; first exact: p_ge0.
by apply: mixture_ge0 => // x; apply: parallel_step_ge0.
Qed.

Lemma parallel_parts t : covers (parallel_run t) (p t) ->
  covers_parts (p t) (step_given t) (parallel_run t) (parallel_step t).
Proof.
move=> cov x x' ps_gt0.
have [p_gt0 s_gt0] := factors_gt0 (p_ge0 t x) (step_given_ge0 t x x') ps_gt0.
rewrite mulr_gt0 ?cov //; apply: prodr_gt0 => i _.
exact: lt_le_trans s_gt0 (token_law_ge x' i (step_given_ge0 t x)).
Qed.

Lemma parallel_covers t : covers (parallel_run t) (p t).
Proof.
elim: t => [//|t IH] x; rewrite -step_mixture => q_gt0.
exact: (covers_mixture (p_ge0 t) (step_given_ge0 t) (parallel_run_ge0 t)
  (parallel_step_ge0 t) (parallel_parts IH) q_gt0).
Qed.

(** Q6, any grid, source and coupling: KL(p_T || q_parallel) ≤ Σ_t E TC(X_{t+1} | X_t). Only the
    joint laws of neighboring times enter, so that the process need not be Markov; nor need its
    masses sum to 1. *)
Theorem Q6_any T : KL L (p T) (parallel_run T) <=
  \sum_(t < T) \sum_x p t x * total_correlation (step_given t x).
Proof.
elim: T => [|T IH].
  rewrite big_ord0 /= le_eqVlt /KL big1 ?eqxx // => x _.
  case: (nonneg_case (p_ge0 0 x)) => [->|p_gt0]; first by rewrite mul0r.
  by rewrite mulfV ?ln1 ?mulr0 // lt0r_neq0.
rewrite big_ord_recr /= addrC.
apply: le_trans (ler_add (lexx _) IH).
have partsP : parts (p T) (step_given T).
  move=> x; split=> [|p_gt0]; first exact: step_given_ge0.
  by rewrite /step_given -mulr_suml J_left mulfV // lt0r_neq0.
rewrite (_ : KL L (p T.+1) _ =
    KL L (mixture (p T) (step_given T)) (mixture (parallel_run T) (parallel_step T))); last first.
  by apply: eq_bigr => x _; rewrite step_mixture.
apply: le_trans (B3 L (p_ge0 T) partsP (parallel_run_ge0 T) (parallel_step_ge0 T)
  (parallel_parts (@parallel_covers T))) _.
rewrite ler_add2r /experts_KL; apply: ler_sum => x _.
by rewrite total_correlationE //; apply: step_given_ge0.
Qed.

End Runs.
End Parallel.

(** Falsifiers: over every real field and for every logarithm, an instance that meets the other
    hypotheses and breaks the statement. Most are sequences of one token that is also the part. *)
Section Falsifiers.
Variables (R : realFieldType) (L : logarithm R).

Local Notation fair := (fair R).
Local Notation quarters := (quarters R).
Local Notation points := (points R).
Local Notation half := (half R).

Definition one_token (v : bool) : {ffun 'I_1 -> bool} := [ffun=> v].

Lemma sum_one_token (f : {ffun 'I_1 -> bool} -> R) : \sum_x f x = \sum_v f (one_token v).
Proof.
rewrite (reindex one_token) //=; exists (fun x : {ffun 'I_1 -> bool} => x ord0) => [v _|x _].
  by rewrite ffunE.
by apply/ffunP => i; rewrite ffunE (ord1 i).
Qed.

(** Part k is the one sequence k; its expert knows it. *)
Definition one_part (k : bool) (x : {ffun 'I_1 -> bool}) : R := points k (x ord0).
Definition one_expert (k : bool) (t : 'I_1) (x : {ffun 'I_1 -> bool}) : bool -> R := points k.

Lemma one_part_law k : law (one_part k).
Proof.
split=> [x|]; first exact: delta_ge0.
rewrite sum_one_token -[RHS](points_law R k).2; apply: eq_bigr => v _.
by rewrite /one_part ffunE.
Qed.

Lemma one_mixture (w : bool -> R) x : mixture w one_part x = mixture w points (x ord0).
Proof. by []. Qed.

Lemma next_one (q : {ffun 'I_1 -> bool} -> R) x v : law q ->
  next_token q ord0 x v = q (one_token v).
Proof.
move=> q_law; rewrite /next_token /token_given mass_before0 // divr1.
rewrite (big_pred1 (one_token v)) // => y; apply/andP/eqP => [[_ /eqP yv]|->].
  by apply/ffunP => i; rewrite ffunE (ord1 i).
by rewrite ffunE eqxx; split=> //; apply/agree_onP => i.
Qed.

Lemma next_part k t x v : next_token (one_part k) t x v = points k v.
Proof. by rewrite (ord1 t) next_one; [rewrite /one_part ffunE | exact: one_part_law]. Qed.

Lemma mixture_points_law (w : bool -> R) v : mixture w points v = w v.
Proof.
rewrite /mixture big_bool /= /points /delta.
by case: v; rewrite /= !(mulr1, mulr0, addr0, add0r).
Qed.

Lemma one_sequence (m : 'I_1 -> {ffun 'I_1 -> bool} -> bool -> R) x :
  sequence_law m x = m ord0 x (x ord0).
Proof. by rewrite /sequence_law big_ord1. Qed.

Lemma constant_reads (n : nat) (T : Type) (f : T -> R) :
  causal (fun (_ : 'I_n) (_ : {ffun 'I_n -> bool}) => f).
Proof. by []. Qed.

(** B4 without the router's term, the experts exact and the router's masses wrong. *)
Theorem B4_without_router_term :
  exists (w : bool -> R) (qs : bool -> {ffun 'I_1 -> bool} -> R)
    (rho : 'I_1 -> {ffun 'I_1 -> bool} -> bool -> R) ms,
  [/\ law w /\ (forall k, law (qs k)), causal rho /\ (forall k, causal (ms k)),
      (forall t x, nonneg (rho t x)) /\ (forall k t x, nonneg (ms k t x)),
      (forall k t x v, 0 < w k -> 0 < next_token (qs k) t x v -> 0 < rho t x k * ms k t x v) &
      \sum_k w k * KL L (qs k) (sequence_law (ms k)) <
      KL L (mixture w qs) (sequence_law (routed rho ms))].
Proof.
exists fair, one_part, (fun _ _ => quarters), one_expert; split.
- by split; [exact: fair_law | exact: one_part_law].
- by split.
- by split=> [t x|k t x]; [case: (quarters_law R) | exact: delta_ge0].
- by move=> k t x v _; rewrite next_part => ?; rewrite mulr_gt0 ?quarters_gt0.
rewrite big1 => [|k _]; last first.
  rewrite /KL big1 ?mulr0 // => x _; rewrite one_sequence /one_expert -/(one_part k x).
  case: (nonneg_case ((one_part_law k).1 x)) => [->|q_gt0]; first by rewrite mul0r.
  by rewrite mulfV ?ln1 ?mulr0 // lt0r_neq0.
rewrite (_ : KL L _ _ = KL L fair quarters); first exact: KL_quarters.
rewrite /KL sum_one_token; apply: eq_bigr => v _.
by rewrite one_sequence /routed one_mixture !mixture_points_law !ffunE.
Qed.

(** B5 without the router's term. *)
Theorem B5_without_router_term :
  exists (w : bool -> R) (qs : bool -> {ffun 'I_1 -> bool} -> R)
    (rho : 'I_1 -> {ffun 'I_1 -> bool} -> bool -> R) ms,
  [/\ law w /\ (forall k, law (qs k)), causal rho /\ (forall k, causal (ms k)),
      sub_laws rho /\ (forall k, sub_laws (ms k)) &
      \sum_t \sum_x mixture w qs x * (\sum_k prefix_gate w qs t x k *
        variation (next_token (qs k) t x) (ms k t x)) <
      variation (mixture w qs) (sequence_law (routed rho ms))].
Proof.
exists fair, one_part, (fun _ _ => quarters), one_expert; split.
- by split; [exact: fair_law | exact: one_part_law].
- by split.
- by split=> [t x|k t x]; apply: law_sub; [exact: quarters_law | exact: points_law].
rewrite big1 => [|t _]; last first.
  rewrite big1 // => x _; rewrite big1 ?mulr0 // => k _.
  rewrite /variation big1 ?mulr0 // => v _.
  by rewrite next_part subrr normr0.
apply: mulr_gt0; first exact: half_gt0.
rewrite sum_one_token big_bool /= ltr_paddr ?normr_ge0 // normr_gt0 subr_eq0 gt_eqF //.
rewrite one_sequence /routed one_mixture !mixture_points_law !ffunE.
exact: quarter_lt_half.
Qed.

(** B6 with the divergence in the other direction: what the top has lost is infinitely far. *)
Theorem B6_without_direction : exists (A : pred bool) (r : bool -> R) (q : bool -> bool -> R) x,
  [/\ law r, forall k, law (q k), 0 < kept_mass A r & 0 < mixture r q x /\
      mixture (top_gate A r) q x = 0].
Proof.
exists id, fair, points, false; split; [exact: fair_law | exact: points_law | |].
  by rewrite /kept_mass (big_pred1 true) ?half_gt0 // => -[].
by rewrite !mixture_points_law; split=> //; apply: half_gt0.
Qed.

(** B7 with the mass taken after renormalization, which is 1. *)
Theorem B7_without_lost_mass :
  exists (w : bool -> R) (qs : bool -> {ffun 'I_1 -> bool} -> R) (best : bool),
  [/\ law w, forall k, law (qs k) &
      0 < variation (mixture w qs) (sequence_law (next_token (qs best)))].
Proof.
exists fair, one_part, true; split; [exact: fair_law | exact: one_part_law |].
apply: mulr_gt0; first exact: half_gt0.
rewrite sum_one_token big_bool /= ltr_paddl ?normr_ge0 // normr_gt0 subr_eq0 gt_eqF //.
by rewrite one_sequence next_part ffunE one_mixture mixture_points_law /points /delta half_gt0.
Qed.

(** B9 for soft clusters: two equal parts, of which a sequence says nothing. *)
Theorem B9_without_disjoint_parts :
  exists (w : bool -> R) (qs : bool -> {ffun 'I_1 -> bool} -> R),
  [/\ law w, forall k, law (qs k) &
      entropy L (mixture w qs) - \sum_k w k * entropy L (qs k) != entropy L w].
Proof.
exists fair, (fun=> one_part true); split.
- exact: fair_law.
- by move=> k; apply: one_part_law.
have mixE x : mixture fair (fun=> one_part true) x = one_part true x.
  by rewrite /mixture big_bool /= -mulrDl half_add mul1r.
rewrite big_bool /= -mulrDl half_add mul1r.
rewrite (_ : entropy L _ = entropy L (one_part true)); last first.
  by congr (- _); apply: eq_bigr => x _; rewrite mixE.
rewrite subrr eq_sym /entropy big_bool /= -mulrDl half_add mul1r oppr_eq0.
by rewrite lt_eqF // ln_half.
Qed.

(** B9 for a gate that sees the token it is to predict. *)
Theorem B9_gate_without_causality :
  exists (w : bool -> R) (qs : bool -> {ffun 'I_1 -> bool} -> R)
    (rho : 'I_1 -> {ffun 'I_1 -> bool} -> bool -> R) ms,
  [/\ law w /\ (forall k, law (qs k)), (forall k, causal (ms k)),
      sub_laws rho /\ (forall k, sub_laws (ms k)) &
      cross_entropy L (mixture w qs) (sequence_law (routed rho ms)) < entropy L (mixture w qs)].
Proof.
exists fair, one_part, (fun t x => points (x t)), one_expert; split.
- by split; [exact: fair_law | exact: one_part_law].
- by [].
- by split=> [t x|k t x]; apply: law_sub; apply: points_law.
rewrite /cross_entropy big1 => [|x _]; last first.
  by rewrite one_sequence /routed mixture_points_law /points /delta eqxx ln1 mulr0.
rewrite oppr0 /entropy oppr_gt0 sum_one_token big_bool /= !one_mixture !mixture_points_law.
by rewrite -mulrDl half_add mul1r ln_half.
Qed.

(** D14 without the router's term: exact experts, and a router with the wrong masses. *)
Lemma token_posterior_one (pi : bool -> R) z i v : law pi ->
  token_posterior (fun _ (_ : unit) => 1) pi (fun (_ : unit) h => h) z i v = pi v.
Proof.
move=> [_ pi1]; rewrite /token_posterior /mean /posterior.
have -> : marginal (fun _ (_ : unit) => 1) pi z = 1.
  by rewrite -[RHS]pi1; apply: eq_bigr => h _; rewrite mul1r.
rewrite -[RHS](sum_delta_point v pi); apply: eq_bigr => h _.
by rewrite divr1; ring.
Qed.

Lemma token_gap_one (pi : bool -> R) ph : law pi -> (forall v, 0 < pi v -> 0 < ph tt tt v) ->
  token_loss L (fun _ (_ : unit) => 1) pi (fun (_ : unit) h => h) (fun _ _ => 1) ph -
  token_loss L (fun _ (_ : unit) => 1) pi (fun (_ : unit) h => h) (fun _ _ => 1)
    (token_posterior (fun _ (_ : unit) => 1) pi (fun (_ : unit) h => h)) = KL L pi (ph tt tt).
Proof.
move=> pi_law cov; have one (f : unit -> R) : \sum_k f k = f tt.
  by rewrite (big_pred1 tt) => [|[]].
rewrite L1; first last.
- by move=> [] [] _ v; rewrite token_posterior_one //; apply: cov.
- by case: pi_law.
- by move=> h z; apply: ler01.
rewrite /token_excess !one mul1r (_ : marginal _ _ _ = 1) ?mul1r; last first.
  by rewrite -[RHS]pi_law.2; apply: eq_bigr => h _; rewrite mul1r.
by apply: eq_bigr => v _; rewrite token_posterior_one.
Qed.

Theorem D14_without_router_term :
  exists (c : bool -> unit -> R) (y : unit -> bool -> bool) (w : bool -> R) pis rho phs,
  [/\ law w, forall k, law (pis k), forall z, law (rho z) &
      \sum_k w k * (token_loss L c (pis k) y (fun _ _ => 1) (phs k) -
        token_loss L c (pis k) y (fun _ _ => 1) (part_posterior c y pis k)) <
      token_loss L c (mixture w pis) y (fun _ _ => 1) (mixed_tokens rho phs) -
        token_loss L c (mixture w pis) y (fun _ _ => 1)
          (token_posterior c (mixture w pis) y)].
Proof.
exists (fun _ _ => 1), (fun _ h => h), fair, points, (fun=> quarters), (fun k _ _ => points k).
split; [exact: fair_law | exact: points_law | by move=> z; apply: quarters_law |].
rewrite big1 => [|k _]; last first.
  rewrite token_gap_one //; last exact: points_law.
  rewrite /KL big1 ?mulr0 // => v _; case: (nonneg_case ((points_law R k).1 v)) => [->|p_gt0].
    by rewrite mul0r.
  by rewrite mulfV ?ln1 ?mulr0 // lt0r_neq0.
have mix_law : law (mixture fair points).
  by split=> [v|]; rewrite ?big_bool /= !mixture_points_law ?half_add ?ltW ?half_gt0.
rewrite token_gap_one // => [|v _]; last by rewrite /mixed_tokens mixture_points_law quarters_gt0.
rewrite (_ : KL L _ _ = KL L fair quarters); first exact: KL_quarters.
by apply: eq_bigr => v _; rewrite /mixed_tokens !mixture_points_law.
Qed.

(** D12 with a router that does not see the state: the state is the part's token with probability
    ¾ and the other with ¼, the experts are exact, the router has the right masses w. *)
Definition noisy (h z : bool) : R := quarters (h != z).
Theorem D12_without_state :
  exists (c : bool -> bool -> R) (y : unit -> bool -> bool) (w : bool -> R) pis z i v,
  [/\ law w, forall k, law (pis k), 0 < mixture w (part_path c pis) z &
      mixed_tokens (fun=> w) (part_posterior c y pis) z i v !=
      token_posterior c (mixture w pis) y z i v].
Proof.
have noisy_gt0 h z : 0 < noisy h z by apply: quarters_gt0.
have pathE k z : part_path noisy points k z = noisy k z.
  rewrite -[RHS](sum_delta k (noisy^~ z)); apply: eq_bigr => h _; exact: mulrC.
have postE k z i v : part_posterior noisy (fun (_ : unit) h => h) points k z i v = points k v.
  rewrite /part_posterior /token_posterior /mean /posterior -/(part_path noisy points k z) pathE.
  transitivity (\sum_h delta k h * (noisy h z / noisy k z * delta h v)).
    by apply: eq_bigr => h _; rewrite [noisy h z * _]mulrC -!mulrA.
  by rewrite (sum_delta k (fun h => noisy h z / noisy k z * delta h v)) mulfV ?mul1r ?lt0r_neq0.
have mixE : mixture fair (part_path noisy points) true = half.
  by rewrite /mixture big_bool /= !pathE -mulrDr /noisy /= subrK mulr1.
exists noisy, (fun _ h => h), fair, points, true, tt, true; split.
- exact: fair_law.
- exact: points_law.
- by rewrite mixE half_gt0.
rewrite posterior_mixture; first last.
- by move=> k; case: (points_law R k).
- by move=> h z; apply: ltW.
rewrite /mixed_tokens /mixture !big_bool /= !postE -!/(points _ _).
rewrite /points /delta /= !mulr0 !mulr1 !addr0 /state_gate /gate mixE pathE /noisy /=.
rewrite mulrAC mulfV ?mul1r ?lt0r_neq0 ?half_gt0 //.
rewrite lt_eqF // -subr_gt0 (_ : _ - _ = half - half * half); last first.
  by rewrite -[in LHS](half_add R) addrAC addrK.
by rewrite subr_gt0; apply: quarter_lt_half.
Qed.

(** Q6 without the total correlation: two equal tokens drawn at once. *)
Definition twin (v : bool) : {ffun bool -> bool} := [ffun=> v].
Definition twins (x : {ffun bool -> bool}) : R := mixture fair (fun k => delta (twin k)) x.

Lemma sum_twins f : \sum_x twins x * f x = half * (f (twin true) + f (twin false)).
Proof.
rewrite /twins /mixture; under eq_bigr do rewrite mulr_suml.
rewrite exchange_big big_bool /= mulrDr; congr (_ + _).
  by rewrite -[in RHS](sum_delta (twin true) f) mulr_sumr; apply: eq_bigr => x _; rewrite mulrA.
by rewrite -[in RHS](sum_delta (twin false) f) mulr_sumr; apply: eq_bigr => x _; rewrite mulrA.
Qed.

Lemma twins_law : law twins.
Proof.
split; first by apply: mixture_ge0 => [|k]; [case: (fair_law R) | exact: delta_ge0].
transitivity (\sum_x twins x * 1); first by apply: eq_bigr => x _; rewrite mulr1.
by rewrite (sum_twins (fun=> 1)) mulrDr mulr1 half_add.
Qed.

Lemma twinsE v : twins (twin v) = half.
Proof.
have ne : twin true == twin false = false by apply/eqP => /ffunP /(_ true); rewrite !ffunE.
have ne' : twin false == twin true = false by rewrite eq_sym.
rewrite /twins /mixture big_bool /= /delta.
by case: v; rewrite eqxx ?ne ?ne' /= !(mulr1, mulr0, addr0, add0r).
Qed.

Lemma twin_token (block : bool -> 'I_1) i v :
  token_given twins (revealed block (block i)) i (twin v) v = half.
Proof.
rewrite (ord1 (block i)) /token_given (_ : mass _ _ _ = 1); last first.
  by rewrite -twins_law.2; apply: eq_bigl => y; apply/agree_onP.
rewrite divr1 big_mkcond.
transitivity (\sum_x twins x * (x i == v)%:R).
  apply: eq_bigr => x _; rewrite (_ : agree_on _ _ _ = true); last by apply/agree_onP.
  by rewrite /=; case: eqP => _; rewrite ?mulr1 ?mulr0.
by rewrite sum_twins !ffunE; case: v; rewrite /= !(addr0, add0r, mulr1).
Qed.

Theorem Q6_without_correlation : exists (block : bool -> 'I_1) (q : {ffun bool -> bool} -> R),
  law q /\ 0 < KL L q (parallel_law block q).
Proof.
exists (fun=> ord0), twins; split; first exact: twins_law.
rewrite /KL (sum_twins (fun x => L (twins x / parallel_law _ twins x))) !twinsE /parallel_law.
rewrite !big_bool /= !ffunE !(twin_token (fun=> ord0)).
have -> : half / (half * half) = half^-1 by field; rewrite lt0r_neq0 // half_gt0.
rewrite lnV ?half_gt0 //; apply: mulr_gt0; first exact: half_gt0.
by rewrite addr_gt0 // oppr_gt0 ln_half.
Qed.

End Falsifiers.
