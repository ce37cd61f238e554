(** Finite laws, posteriors and fields: the notation of the ledger in Coq.

    V, S are finite types of tokens and states, I of positions, K of experts; R is any real field.
    A sequence is a finite function from positions to states. Time is not a variable here: a
    statement about time t fixes the masses at that time, and one about a step fixes both ends.
    1/0 = 0 in this library, so the conditions on supports are written out. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Notation nonneg p := (forall v, 0 <= p v).

Section Laws.
Variable R : realFieldType.

(** δ_y(v), the point mass at y. *)
Definition delta (S : eqType) (y v : S) : R := (v == y)%:R.

Definition law (S : finType) (p : S -> R) := nonneg p /\ \sum_v p v = 1.

(** Hidden values h (pairs (x_0, x_1), parts) have masses π(h); c(h, z) is the law of the state z
    given h. Then p(z) = Σ_h c(h, z) π(h). *)
Definition marginal (H Z : finType) (c : H -> Z -> R) (pi : H -> R) (z : Z) : R :=
  \sum_h c h z * pi h.

(** P(h | z) = c(h, z) π(h) / p(z), where p(z) > 0. *)
Definition posterior (H Z : finType) (c : H -> Z -> R) (pi : H -> R) (z : Z) (h : H) : R :=
  c h z * pi h / marginal c pi z.

(** E[f | z]. *)
Definition mean (H Z : finType) (c : H -> Z -> R) (pi : H -> R) (z : Z) (f : H -> R) : R :=
  \sum_h posterior c pi z h * f h.

(** Σ_k w_k p_k(z). *)
Definition mixture (K : finType) (Z : Type) (w : K -> R) (p : K -> Z -> R) (z : Z) : R :=
  \sum_k w k * p k z.

(** r_k(z) = w_k p_k(z) / Σ_j w_j p_j(z). *)
Definition gate (K : finType) (Z : Type) (w : K -> R) (p : K -> Z -> R) (z : Z) (k : K) : R :=
  w k * p k z / mixture w p z.

Section Facts.
Variables (S H K Z : finType).

Lemma delta_ge0 (y : S) : nonneg (delta y).
Proof. by move=> v; rewrite /delta ler0n. Qed.

Lemma sum_delta (y : S) (f : S -> R) : \sum_v delta y v * f v = f y.
Proof.
rewrite (bigD1 y) //= /delta eqxx mul1r big1 ?addr0 // => v /negPf ->.
by rewrite mul0r.
Qed.

Lemma sum_delta1 (y : S) : \sum_v delta y v = 1.
Proof. by rewrite -[RHS](sum_delta y (fun=> 1)); apply: eq_bigr => v _; rewrite mulr1. Qed.

Lemma delta_law (y : S) : law (delta y).
Proof. by split; [exact: delta_ge0 | exact: sum_delta1]. Qed.

(** Σ_y over the point instead of the value. *)
Lemma sum_delta_point (v : S) (f : S -> R) : \sum_y delta y v * f y = f v.
Proof.
rewrite -[RHS](sum_delta v f); apply: eq_bigr => y _.
by rewrite /delta eq_sym.
Qed.

Lemma sum_nonneg_eq0 (T : finType) (f : T -> R) : nonneg f -> \sum_h f h = 0 -> forall h, f h = 0.
Proof.
move=> f_ge0 /eqP; rewrite psumr_eq0 => [|h _]; last exact: f_ge0.
by move=> /allP f0 h; apply/eqP; apply: f0; rewrite mem_index_enum.
Qed.

Lemma sum_ge_term (T : finType) (f : T -> R) h : nonneg f -> f h <= \sum_g f g.
Proof. by move=> f_ge0; rewrite (bigD1 h) //= ler_addl; apply: sumr_ge0 => g _; exact: f_ge0. Qed.

Section Posterior.
Variables (c : H -> Z -> R) (pi : H -> R).

Lemma marginal_ge0 : (forall h, nonneg (c h)) -> nonneg pi -> nonneg (marginal c pi).
Proof. by move=> c_ge0 pi_ge0 z; apply: sumr_ge0 => h _; rewrite mulr_ge0. Qed.

Lemma sum_posterior z : 0 < marginal c pi z -> \sum_h posterior c pi z h = 1.
Proof. by move=> p_gt0; rewrite /posterior -mulr_suml mulfV // gt_eqF. Qed.

(** p(z) P(h | z) = c(h, z) π(h), also where p(z) = 0, if nothing is negative. *)
Lemma posteriorE z h : (forall h, nonneg (c h)) -> nonneg pi ->
  marginal c pi z * posterior c pi z h = c h z * pi h.
Proof.
move=> c_ge0 pi_ge0; have [p0|p_neq0] := eqVneq (marginal c pi z) 0.
  rewrite p0 mul0r; symmetry; move: h; apply: sum_nonneg_eq0 p0 => h.
  by rewrite mulr_ge0.
by rewrite /posterior mulrCA mulfV ?mulr1.
Qed.

(** p(z) E[f | z] = Σ_h c(h, z) π(h) f(h). *)
Lemma meanE z f : (forall h, nonneg (c h)) -> nonneg pi ->
  marginal c pi z * mean c pi z f = \sum_h c h z * pi h * f h.
Proof.
by move=> c_ge0 pi_ge0; rewrite /mean mulr_sumr; apply: eq_bigr => h _; rewrite mulrA posteriorE.
Qed.

Lemma mean_const z a : 0 < marginal c pi z -> mean c pi z (fun=> a) = a.
Proof. by move=> p_gt0; rewrite /mean -mulr_suml sum_posterior // mul1r. Qed.

Lemma mean_add z f g : mean c pi z (fun h => f h + g h) = mean c pi z f + mean c pi z g.
Proof. by rewrite /mean -big_split; apply: eq_bigr => h _; rewrite mulrDr. Qed.

Lemma mean_sub z f g : mean c pi z (fun h => f h - g h) = mean c pi z f - mean c pi z g.
Proof. by rewrite /mean -sumrB; apply: eq_bigr => h _; rewrite mulrBr. Qed.

Lemma mean_scale z a f : mean c pi z (fun h => a * f h) = a * mean c pi z f.
Proof. by rewrite /mean mulr_sumr; apply: eq_bigr => h _; rewrite mulrCA. Qed.

End Posterior.

Section Mixture.
Variables (w : K -> R) (p : K -> Z -> R).

Lemma mixture_ge0 : nonneg w -> (forall k, nonneg (p k)) -> nonneg (mixture w p).
Proof. by move=> w_ge0 p_ge0 z; apply: sumr_ge0 => k _; rewrite mulr_ge0. Qed.

Lemma sum_gate z : 0 < mixture w p z -> \sum_k gate w p z k = 1.
Proof. by move=> p_gt0; rewrite /gate -mulr_suml mulfV // gt_eqF. Qed.

Lemma gate_ge0 z : nonneg w -> (forall k, nonneg (p k)) -> nonneg (gate w p z).
Proof. by move=> w_ge0 p_ge0 k; rewrite divr_ge0 ?mulr_ge0 ?mixture_ge0. Qed.

(** p(z) r_k(z) = w_k p_k(z), also off the support. *)
Lemma gateE z k : nonneg w -> (forall k, nonneg (p k)) ->
  mixture w p z * gate w p z k = w k * p k z.
Proof.
move=> w_ge0 p_ge0; have [p0|p_neq0] := eqVneq (mixture w p z) 0.
  rewrite p0 mul0r; symmetry; move: k; apply: sum_nonneg_eq0 p0 => k.
  by rewrite mulr_ge0.
by rewrite /gate mulrCA mulfV ?mulr1.
Qed.

End Mixture.
End Facts.
End Laws.

Arguments delta {R S} y v.

Section Sequences.
Variables (R : realFieldType) (I S : finType).
Implicit Types (x z : {ffun I -> S}).

(** Π_i p^i(x^i): positions independent. *)
Definition product_law (p : I -> S -> R) x : R := \prod_i p i (x i).

(** x^{≠i} = z^{≠i}. *)
Definition agree_off i x z : bool := [forall j, (j != i) ==> (x j == z j)].

(** z with v in the place of z^i. *)
Definition put z i v : {ffun I -> S} := [ffun j => if j == i then v else z j].

(** u(x, z) = Σ_i 1[x^{≠i} = z^{≠i}] u^i(x^i, z). *)
Definition full_field (u : I -> S -> {ffun I -> S} -> R) x z : R :=
  \sum_i (agree_off i x z)%:R * u i (x i) z.

(** div_x(p u) = Σ_{z≠x} [p(x) u(z, x) − p(z) u(x, z)]: outflow − inflow. *)
Definition divergence (Z : finType) (p : Z -> R) (u : Z -> Z -> R) (x : Z) : R :=
  \sum_(z | z != x) (p x * u z x - p z * u x z).

Lemma sum_product_law (p : I -> S -> R) :
  \sum_(x : {ffun I -> S}) product_law p x = \prod_i \sum_v p i v.
Proof. by rewrite bigA_distr_bigA. Qed.

Lemma agree_offE i x z : agree_off i x z = (x == put z i (x i)).
Proof.
apply/forallP/eqP => [agree|-> j].
  apply/ffunP => j; rewrite ffunE; case: eqP => [-> //|/eqP ji].
  by have := agree j; rewrite ji => /eqP.
by apply/implyP => /negPf ji; rewrite ffunE ji.
Qed.

Lemma agree_off_sym i x z : agree_off i x z = agree_off i z x.
Proof. by apply: eq_forallb => j; rewrite (eq_sym (x j)). Qed.

(** A sum over all x that agree with z off i is a sum over the value at i. *)
Lemma sum_agree_off i z (f : {ffun I -> S} -> R) :
  \sum_x (agree_off i x z)%:R * f x = \sum_v f (put z i v).
Proof.
rewrite (bigID (agree_off i ^~ z)) /= addrC big1 ?add0r; last first.
  by move=> x /negPf ->; rewrite mul0r.
rewrite (reindex_onto (put z i) (fun x => x i)) /=; last first.
  by move=> x; rewrite agree_offE => /eqP <-.
apply: eq_big => [v|v _].
  by rewrite agree_offE !ffunE eqxx !eqxx.
by rewrite agree_offE ffunE eqxx eqxx mul1r.
Qed.

(** If the columns of u sum to 0, div_x(p u) = −Σ_z u(x, z) p(z). *)
Lemma divergenceE (Z : finType) (p : Z -> R) (u : Z -> Z -> R) (x : Z) :
  (forall z : Z, \sum_y u y z = 0) -> divergence p u x = - \sum_z u x z * p z.
Proof.
move=> rate; rewrite /divergence sumrB -mulr_sumr.
have := rate x; rewrite (bigD1 x) //= => /eqP; rewrite addrC addr_eq0 => /eqP ->.
rewrite [in RHS](bigD1 x) //= opprD mulrN (mulrC (p x)); congr (_ - _).
by apply: eq_bigr => z _; rewrite mulrC.
Qed.

(** The columns of a full field sum to 0 if those of every position do. *)
Lemma full_field_rate u z :
  (forall i, \sum_v u i v z = 0) -> \sum_x full_field u x z = 0.
Proof.
move=> rate; rewrite exchange_big big1 //= => i _.
rewrite (sum_agree_off i z (fun x => u i (x i) z)) -[RHS](rate i).
by apply: eq_bigr => v _; rewrite ffunE eqxx.
Qed.

End Sequences.
