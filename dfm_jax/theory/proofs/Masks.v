(** P7: with a source of masks only, posteriors and gates see the revealed tokens and no time. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Masks.
Variables (R : realFieldType) (I S K : finType) (m : S).
Implicit Types (x z : {ffun I -> S}).

(** The sequence of masks. *)
Definition masks : {ffun I -> S} := [ffun=> m].

(** p_t(z | x_1) from the source of masks. *)
Definition masked_path (kappa : I -> R) x z : R := conditional_path kappa (masks, x) z.

(** 1[x agrees with z wherever z is not masked]. *)
Definition revealed x z : bool := [forall i, (z i != m) ==> (x i == z i)].
Definition revealed_indicator x z : R := (revealed x z)%:R.

(** Π_i (1 − κ^i if z^i is masked, else κ^i). *)
Definition mask_weight (kappa : I -> R) z : R := \prod_i (if z i == m then 1 - kappa i else kappa i).

Lemma masked_pathE kappa x z : (forall i, x i != m) ->
  masked_path kappa x z = mask_weight kappa z * revealed_indicator x z.
Proof.
move=> x_data; have token i : mixture_token (kappa i) m (x i) (z i)
    = (if z i == m then 1 - kappa i else kappa i) * ((z i != m) ==> (x i == z i))%:R.
  rewrite /mixture_token /delta; have [->|zm] := eqVneq (z i) m.
    by rewrite [m == x i]eq_sym (negPf (x_data i)) mulr0 addr0.
  by rewrite mulr0 add0r eq_sym.
rewrite /masked_path /conditional_path /product_law (eq_bigr (fun i =>
    (if z i == m then 1 - kappa i else kappa i) * ((z i != m) ==> (x i == z i))%:R)); last first.
  by move=> i _; rewrite /= ffunE; exact: token.
rewrite big_split; congr (_ * _); rewrite /revealed_indicator /revealed.
have [all_i|] := boolP [forall i, (z i != m) ==> (x i == z i)].
  by apply: big1 => i _; rewrite (forallP all_i i).
by rewrite negb_forall => /existsP[i /negPf not_i]; rewrite (bigD1 i) //= not_i mul0r.
Qed.

Section Posterior.
Variables (kappa : I -> R) (q : {ffun I -> S} -> R).
Hypothesis k01 : forall i, 0 < kappa i < 1.
Hypothesis q_data : forall x, q x != 0 -> forall i, x i != m.

Lemma mask_weight_neq0 z : mask_weight kappa z != 0.
Proof.
rewrite /mask_weight; apply/prodf_neq0 => i _; have /andP[k0 k1] := k01 i.
by case: ifP => _; rewrite lt0r_neq0 // subr_gt0.
Qed.

Lemma masked_termE x z :
  masked_path kappa x z * q x = mask_weight kappa z * (revealed_indicator x z * q x).
Proof.
have [->|q_neq0] := eqVneq (q x) 0; first by rewrite !mulr0.
by rewrite masked_pathE ?mulrA //; exact: q_data.
Qed.

Lemma masked_marginalE z :
  marginal (masked_path kappa) q z = mask_weight kappa z * marginal revealed_indicator q z.
Proof. by rewrite /marginal mulr_sumr; apply: eq_bigr => x _; exact: masked_termE. Qed.

(** P7. From masks, with every κ^i in (0, 1), the mean of any f given z is its mean given the
    revealed tokens of z: q(v | revealed tokens), free of t and κ. Data have no masks. *)
Theorem P7 z (f : {ffun I -> S} -> R) :
  mean (masked_path kappa) q z f = mean revealed_indicator q z f.
Proof.
apply: eq_bigr => x _; congr (_ * _); rewrite /posterior masked_termE masked_marginalE.
by rewrite invfM mulrACA mulfV ?mul1r // mask_weight_neq0.
Qed.

End Posterior.

(** P7, the gate: r_k(z, t) = P(k | revealed tokens of z). *)
Theorem P7_gate (kappa : I -> R) (w : K -> R) (q : K -> {ffun I -> S} -> R) z k :
  (forall i, 0 < kappa i < 1) -> (forall k x, q k x != 0 -> forall i, x i != m) ->
  gate w (fun k => marginal (masked_path kappa) (q k)) z k
  = gate w (fun k => marginal revealed_indicator (q k)) z k.
Proof.
move=> k01 q_data; have C_neq0 := mask_weight_neq0 k01 z.
have part j : marginal (masked_path kappa) (q j) z
    = mask_weight kappa z * marginal revealed_indicator (q j) z.
  by apply: masked_marginalE => //; exact: q_data.
rewrite /gate; have -> : mixture w (fun j => marginal (masked_path kappa) (q j)) z
    = mask_weight kappa z * mixture w (fun j => marginal revealed_indicator (q j)) z.
  by rewrite /mixture mulr_sumr; apply: eq_bigr => j _; rewrite part mulrCA.
by rewrite part mulrCA invfM mulrACA divff // mul1r.
Qed.

End Masks.
