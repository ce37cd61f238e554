(** S3 and S5: Euler's step, and steps at a frozen time. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths Velocities Experts.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Euler.
Variables (R : realFieldType) (S : finType).

(** δ_z(v) + h u(v, z). *)
Definition euler_step (h : R) (u : S -> S -> R) (v z : S) : R := delta z v + h * u v z.

(** S3. For κ_t = t, Euler's step of length h from t with V5's velocity is the exact finite step of
    Q3 from t to t + h: λ = ((t + h) − t) / (1 − t). Also at t = 1, where both stand still. *)
Theorem S3 (t h : R) (post : S -> R) (v z : S) :
  euler_step h (posterior_to_velocity t 1 post) v z
  = delta z v + (t + h - t) / (1 - t) * (post v - delta z v).
Proof. by rewrite /euler_step /posterior_to_velocity; congr (_ + _); rewrite mul1r; ring. Qed.

End Euler.

Section Correctors.
Variables (R : realFieldType) (Z : finType).

(** S5, all at once. If a velocity leaves p as it is (V7 with α = β), so does the step I + hG, of
    any length h. *)
Theorem S5 (h : R) (G : Z -> Z -> R) (p : Z -> R) : generates G p (fun=> 0) ->
  forall x, \sum_z (delta z x + h * G x z) * p z = p x.
Proof.
move=> still x; have /eqP := still x; rewrite /flow => /eqP G0.
rewrite (eq_bigr (fun z => delta z x * p z + h * (G x z * p z))) => [|z _]; last first.
  by rewrite mulrDl mulrA.
by rewrite big_split /= -mulr_sumr G0 mulr0 addr0 (sum_delta_point x p).
Qed.

End Correctors.

Section OnePosition.
Variables (R : realFieldType) (I S : finType).
Notation pairs := ({ffun I -> S} * {ffun I -> S})%type.

(** The velocity α (u − ǔ) of one token of a pair: V7 with α = β. *)
Definition corrector_token (alpha kappa dkappa : R) (x0 x1 v z : S) : R :=
  alpha * mixture_velocity kappa dkappa x1 v z - alpha * backward_velocity kappa dkappa x0 v z.

Lemma corrector_token_still (alpha kappa dkappa : R) (x0 x1 : S) : kappa != 0 -> kappa != 1 ->
  generates (corrector_token alpha kappa dkappa x0 x1) (mixture_token kappa x0 x1) (fun=> 0).
Proof.
move=> k0 k1 v; have := V7 alpha alpha (V3 dkappa x0 x1 k1) (V6 dkappa x0 x1 k0) v.
by rewrite subrr mul0r.
Qed.

(** S5, one position. The corrector of a single position i, marginalized over the pairs, leaves p_t
    as it is: so does the step I + hG that moves position i only. *)
Theorem S5_one_position (alpha : R) (kappa dkappa : I -> R) (pi : pairs -> R) (i : I) :
  (forall j, 0 < kappa j < 1) -> nonneg pi ->
  generates (marginal_velocity (conditional_path kappa) pi
      (fun h x z => (agree_off i x z)%:R
         * corrector_token alpha (kappa i) (dkappa i) (h.1 i) (h.2 i) (x i) (z i)))
    (marginal (conditional_path kappa) pi) (fun=> 0).
Proof.
move=> k01 pi_ge0 x.
have k01' j : 0 <= kappa j <= 1 by have /andP[k0 k1] := k01 j; rewrite !ltW.
pose c0 (h : pairs) (z : {ffun I -> S}) : R := 0.
rewrite (@V4 R _ _ _ c0) // => [|h|h]; first by rewrite /marginal big1 // => h _; rewrite mul0r.
  exact: conditional_path_ge0.
move=> y; rewrite /flow.
rewrite (eq_bigr (fun z => (agree_off i z y)%:R * (corrector_token alpha (kappa i) (dkappa i)
  (h.1 i) (h.2 i) (y i) (z i) * conditional_path kappa h z))) => [|z _]; last first.
  by rewrite agree_off_sym mulrA.
rewrite sum_agree_off.
rewrite (eq_bigr (fun v => corrector_token alpha (kappa i) (dkappa i) (h.1 i) (h.2 i) (y i) v
    * mixture_token (kappa i) (h.1 i) (h.2 i) v
    * \prod_(j | j != i) mixture_token (kappa j) (h.1 j) (h.2 j) (y j))) => [|v _]; last first.
  rewrite ffunE eqxx -mulrA; congr (_ * _); rewrite /conditional_path /product_law (bigD1 i) //=.
  by rewrite ffunE eqxx; congr (_ * _); apply: eq_bigr => j /negPf ji; rewrite ffunE ji.
have /andP[k0 k1] := k01 i; rewrite -mulr_suml.
have /= := corrector_token_still alpha (dkappa i) (h.1 i) (h.2 i) (lt0r_neq0 k0) (negbT (lt_eqF k1)).
by rewrite /generates /flow => ->; rewrite mul0r.
Qed.

End OnePosition.
