(** Instances on which statements of Velocities.v and Experts.v fail without one of their hypotheses.

    Those of the other files stand at their ends. States, pairs and experts are two here, and all
    numbers are rationals, so that Coq computes both sides. *)

From mathcomp Require Import all_ssreflect all_algebra.
From DFM Require Import Basics Paths Velocities Experts.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Instances.
Notation R := rat_realFieldType.

(** The fair law of two values, the point masses, and a velocity that tells the pair. *)
Definition fair_coin (_ : bool) : R := 2%:R^-1.
Definition point (h z : bool) : R := delta h z.
Definition tells_pair (h x z : bool) : R := delta h x.
(** A state that says the pair in three cases of four. *)
Definition blurred (h z : bool) : R := if h == z then 3%:R / 4%:R else 1 / 4%:R.

(** D4 with a static gate, Σ_k w_k u^k in the place of Σ_k r_k u^k, fails. *)
Theorem D4_without_posterior :
  marginal_velocity blurred (mixture fair_coin point) tells_pair true true
  != \sum_k fair_coin k * marginal_velocity blurred (point k) tells_pair true true.
Proof.
by rewrite /marginal_velocity /mean /posterior /marginal /mixture !big_bool; vm_compute.
Qed.

(** V4 with the prior mean in the place of the posterior mean does not generate p_t: the velocity
    δ_h − δ_z of pair h brings the blurred law of h closer to the point h. *)
Definition towards (h x z : bool) : R := delta h x - delta z x.
Theorem V4_without_posterior :
  (forall h, generates (towards h) (blurred h) (fun x => delta h x - blurred h x)) /\
  flow (fun x z => \sum_h fair_coin h * towards h x z) (marginal blurred (fun h => blurred true h))
    true
  != marginal (fun h x => delta h x - blurred h x) (fun h => blurred true h) true.
Proof.
split; last by rewrite /flow /marginal !big_bool; vm_compute.
by case; case; rewrite /flow big_bool /=; apply/eqP; vm_compute.
Qed.

(** V3 without the division by 1 − κ does not generate the path. *)
Theorem V3_without_division :
  flow (fun v z => 1 * (delta true v - delta z v) : R) (mixture_token (1 / 2%:R) false true) true
  != 1 * (delta true true - delta false true).
Proof. by rewrite /flow big_bool; vm_compute. Qed.

(** V8 needs ṗ ≥ 0 where p = 0, and V9 needs ṗ = 0 there. *)
Definition rising (v : bool) : R := if v then 1 else -1.
Theorem V8_without_rise :
  flow (with_diagonal (kinetic_optimal (point false) (fun v => - rising v))) (point false) true
  != - rising true.
Proof.
by rewrite flow_with_diagonal big_bool /kinetic_optimal; vm_compute.
Qed.

Theorem V9_without_interior :
  flow (with_diagonal (campbell (point false) rising)) (point false) true != rising true.
Proof.
rewrite flow_with_diagonal big_bool /campbell.
by rewrite (_ : (0 < point false true) = false) // andbF !mul0r subr0.
Qed.

(** D7 with a gate that forgets all but the last token is not the mixture of sequences. *)
Definition forgetful (w l : bool -> R) (k : bool) : R := w k * l k / \sum_j w j * l j.
Theorem D7_without_memory :
  (\sum_k fair_coin k * blurred k true)
  * (\sum_k forgetful fair_coin (blurred^~ true) k * blurred k true)
  * (\sum_k forgetful fair_coin (blurred^~ true) k * blurred k true)
  != sequence_mixture fair_coin [:: blurred^~ true; blurred^~ true; blurred^~ true].
Proof.
by rewrite /sequence_mixture /forgetful !big_bool !big_cons !big_nil; vm_compute.
Qed.

(** D8 needs the part to be a function of the context: if both parts have pairs of a context, the
    posterior is not 0 or 1. *)
Theorem D8_without_context :
  expert_posterior (fun _ _ : bool => 1 : R) fair_coin point true true != 1.
Proof.
by rewrite /expert_posterior /gate /mixture /part_path /marginal !big_bool; vm_compute.
Qed.

End Instances.
