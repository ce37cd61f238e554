(** Samplers (S1, S2, S4, S6 to S8): chains of steps and the laws of their ends. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Steps Autoregression.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** The law after T steps of the kernels P_0, P_1, … from the law p. *)
Fixpoint run (R : realFieldType) (Z : finType) (P : nat -> Z -> Z -> R) (p : Z -> R) (T : nat)
    : Z -> R :=
  if T is t.+1 then push_forward (P t) (run P p t) else p.

Section Exact.
Variables (R : realFieldType) (I S : finType).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.
Implicit Types (x z : states) (kappa : nat -> I -> R) (pi : pairs -> R).

(** The kernels of the exact finite step (Q3) along a table. *)
Definition step_kernels kappa pi (t : nat) : states -> states -> R :=
  step_kernel (step_velocity (kappa t) (kappa t.+1) pi).

Definition source_law pi (x0 : states) : R := \sum_(x1 : states) pi (x0, x1).
Definition data_law pi (x1 : states) : R := \sum_(x0 : states) pi (x0, x1).

(** P4 at the ends: κ = 0 is the source, κ = 1 the data. *)
Lemma path_source (k : I -> R) pi x : (forall i, k i = 0) -> path k pi x = source_law pi x.
Proof.
move=> k0; rewrite /path /marginal.
transitivity (\sum_(x0 : states) \sum_(x1 : states) delta x0 x * pi (x0, x1)).
  rewrite pair_bigA; apply: eq_bigr => -[x0 x1] _ /=; congr (_ * _).
  rewrite -delta_all; apply: eq_bigr => i _.
  by rewrite /mixture_token k0 subr0 mul1r mul0r addr0.
under eq_bigr do rewrite -mulr_sumr; exact: (sum_delta_point x (source_law pi)).
Qed.

Lemma path_data (k : I -> R) pi x : (forall i, k i = 1) -> path k pi x = data_law pi x.
Proof.
move=> k1; rewrite /path /marginal.
transitivity (\sum_(x0 : states) \sum_(x1 : states) delta x1 x * pi (x0, x1)).
  rewrite pair_bigA; apply: eq_bigr => -[x0 x1] _ /=; congr (_ * _).
  rewrite -delta_all; apply: eq_bigr => i _.
  by rewrite /mixture_token k1 subrr mul1r mul0r add0r.
by rewrite exchange_big; under eq_bigr do rewrite -mulr_sumr; exact: (sum_delta_point x (data_law pi)).
Qed.

(** S2: the exact finite step along any table: after T steps from p_0 the joint law is p_T, if at
    every step and every z with p_t(z) > 0 at most one position moves (Q5, chained). *)
Theorem S2 kappa pi (T : nat) x : nonneg pi ->
  (forall t, (t < T)%N -> schedule (kappa t) (kappa t.+1)) ->
  (forall t z, (t < T)%N -> 0 < path (kappa t) pi z ->
    at_most_one (moves_at (step_velocity (kappa t) (kappa t.+1) pi) z)) ->
  run (step_kernels kappa pi) (path (kappa 0%N) pi) T x = path (kappa T) pi x.
Proof.
move=> pi_ge0; elim: T x => [//|T IH] x sched one /=.
rewrite (Q5 x (sched T (ltnSn T)) pi_ge0 (fun z => one T z (ltnSn T))).
apply: eq_bigr => z _; congr (_ * _).
by apply: IH => [t|t y] lt; [apply: sched | apply: one]; exact: ltnW.
Qed.

(** S2 for one-position tables, from the source at κ = 0 to the data at κ = 1. *)
Theorem S2_one_position_tables kappa pi (T : nat) x : nonneg pi ->
  (forall t, (t < T)%N -> schedule (kappa t) (kappa t.+1)) ->
  (forall t, (t < T)%N -> at_most_one (fun i => kappa t.+1 i != kappa t i)) ->
  (forall i, kappa 0%N i = 0) -> (forall i, kappa T i = 1) ->
  run (step_kernels kappa pi) (source_law pi) T x = data_law pi x.
Proof.
move=> pi_ge0 sched one start end1; rewrite -(path_data pi x end1).
have all_steps : forall t, (t <= T)%N -> run (step_kernels kappa pi) (source_law pi) t
    =1 path (kappa t) pi.
  elim=> [|t IH] lt y /=; first by rewrite path_source.
  rewrite (Q5_one_position_table y (sched t lt) pi_ge0 (one t lt)).
  by apply: eq_bigr => z _; rewrite IH // ltnW.
exact: all_steps.
Qed.

(** Each token's posterior where κ < 1, the token itself where κ = 1. *)
Definition final_kernel (k : I -> R) pi x z : R :=
  \prod_i (if k i == 1 then delta (z i) (x i) else data_token k pi i (x i) z).

(** S4: the last step is the exact finite step to κ = 1. *)
Theorem S4_is_exact_step (k : I -> R) pi x z :
  final_kernel k pi x z = step_kernel (step_velocity k (fun=> 1) pi) x z.
Proof.
apply: eq_bigr => i _; rewrite /step_velocity /step_size; case: eqP => [_|/eqP k_neq1].
  by rewrite mul0r addr0.
by rewrite divff ?mul1r; [rewrite addrC subrK | rewrite subr_eq0 eq_sym].
Qed.

(** S4: the last step draws every unfinished position (κ^i < 1) from p_{1|t}^i: the joint law is
    exact if at most one position is pending at every z with p_t(z) > 0. *)
Theorem S4 (k : I -> R) pi x : nonneg pi -> (forall i, 0 <= k i <= 1) ->
  (forall z, 0 < path k pi z -> at_most_one (moves_at (step_velocity k (fun=> 1) pi) z)) ->
  push_forward (final_kernel k pi) (path k pi) x = data_law pi x.
Proof.
move=> pi_ge0 k01 one; have sched : schedule k (fun=> 1) by [].
rewrite -(path_data (k := fun=> 1)) // (Q5 x sched pi_ge0 one).
by apply: eq_bigr => z _; rewrite S4_is_exact_step.
Qed.

(** S4 for tables: at most one position has κ^i ≠ 1. *)
Theorem S4_one_pending (k : I -> R) pi x : nonneg pi -> (forall i, 0 <= k i <= 1) ->
  at_most_one (fun i => k i != 1) ->
  push_forward (final_kernel k pi) (path k pi) x = data_law pi x.
Proof.
move=> pi_ge0 k01 /at_most_oneP one.
rewrite -(path_data (k := fun=> 1)) // (@Q5_one_position_table _ _ _ k).
- by apply: eq_bigr => z _; rewrite S4_is_exact_step.
- by [].
- exact: pi_ge0.
by apply/at_most_oneP => i j ki kj; apply: one; rewrite eq_sym.
Qed.

(** S4 with masks: if x_0^i = m for every pair of positive mass, revealed tokens never change: where
    p_t(z) > 0 and z^i ≠ m, p_{1|t}^i = δ_{z^i}. *)
Theorem S4_masks (k : I -> R) pi (m : S) i v z : nonneg pi -> 0 < path k pi z ->
  (forall h, 0 < pi h -> h.1 i = m) -> z i != m -> data_token k pi i v z = delta (z i) v.
Proof.
move=> pi_ge0 p_gt0 masks zi.
rewrite -[RHS](mean_const (delta (z i) v) p_gt0); apply: eq_bigr => h _.
have [c0|] := eqVneq (conditional_path k h z * pi h) 0; first by rewrite /posterior c0 !mul0r.
rewrite mulf_eq0 negb_or => /andP [c_neq0 pi_neq0].
suff -> : h.2 i = z i by [].
apply/eqP; apply: contraNT c_neq0; rewrite eq_sym => h2.
have h1 : h.1 i = m by apply: masks; rewrite lt0r pi_neq0 pi_ge0.
rewrite /conditional_path /product_law (bigD1 i) //= /mixture_token /delta h1.
by rewrite (negPf zi) (negPf h2) !mulr0 addr0 mul0r.
Qed.

End Exact.

Section DrawnExperts.
Variables (R : realFieldType) (I S K : finType).
Notation states := {ffun I -> S}.
Implicit Types (x z : states) (u : K -> I -> S -> states -> R).

(** Σ_k r_k u_k, with weights that may differ between positions. *)
Definition mixed_velocity (r : I -> K -> states -> R) u (i : I) (v : S) (z : states) : R :=
  \sum_k r i k z * u k i v z.

(** S6: one step of the mixed velocity is: draw k^i ~ r(z) independently at each position, then
    expert k^i's step there, however many positions move. The weights may differ between positions
    and have any sign; they sum to 1. *)
Theorem S6 (r : I -> K -> states -> R) u x z : (forall i, \sum_k r i k z = 1) ->
  step_kernel (mixed_velocity r u) x z =
  \sum_(k : {ffun I -> K}) (\prod_i r i (k i) z) * step_kernel (fun i => u (k i) i) x z.
Proof.
move=> sum1; rewrite /step_kernel /product_law.
transitivity (\prod_i \sum_k r i k z * (delta (z i) (x i) + u k i (x i) z)).
  apply: eq_bigr => i _; under [RHS]eq_bigr do rewrite mulrDr.
  by rewrite big_split /= -mulr_suml sum1 mul1r.
by rewrite bigA_distr_bigA; apply: eq_bigr => k _; rewrite big_split.
Qed.

(** S6: one k for all positions gives the same step if at most one position moves. *)
Theorem S6_shared (r : K -> states -> R) u x z : \sum_k r k z = 1 ->
  at_most_one (fun i => [exists k, moves_at (u k) z i]) ->
  step_kernel (mixed_velocity (fun=> r) u) x z = \sum_k r k z * step_kernel (u k) x z.
Proof.
move=> sum1 /at_most_oneP one; rewrite step_kernel_one; last first.
  have some i : moves_at (mixed_velocity (fun=> r) u) z i -> [exists k, moves_at (u k) z i].
    move=> /existsP [v]; apply: contraNT; rewrite negb_exists => /forallP none.
    rewrite /mixed_velocity big1 // => k _; have := none k; rewrite negb_exists => /forallP /(_ v).
    by rewrite negbK => /eqP ->; rewrite mulr0.
  by apply/at_most_oneP => i j /some mi /some; exact: one.
transitivity (\sum_k r k z * (delta z x + full_field (u k) x z)); last first.
  apply: eq_bigr => k _; rewrite step_kernel_one //.
  by apply/at_most_oneP => i j mi mj; apply: one; apply/existsP; exists k.
under [RHS]eq_bigr do rewrite mulrDr; rewrite big_split /= -mulr_suml sum1 mul1r; congr (_ + _).
rewrite /full_field; under [RHS]eq_bigr do rewrite mulr_sumr.
rewrite exchange_big; apply: eq_bigr => i _ /=; rewrite /mixed_velocity mulr_sumr.
by apply: eq_bigr => k _; rewrite mulrCA.
Qed.

End DrawnExperts.
