(** Samplers (S1 to S8): chains of steps and the laws of their ends. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths Steps Autoregression.
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
rewrite exchange_big; under eq_bigr do rewrite -mulr_sumr.
exact: (sum_delta_point x (data_law pi)).
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

(** S2 for the conditional law: given the pair, the chain of exact finite steps has the law p_T
    for any table that stays at 1 once there, however many positions move. *)
Theorem S2_conditional kappa (h : pairs) (T : nat) x :
  (forall t i, (t < T)%N -> kappa t i = 1 -> kappa t.+1 i = 1) ->
  run (fun t => step_kernel (pair_velocity (kappa t) (kappa t.+1) h))
    (conditional_path (kappa 0%N) h) T x = conditional_path (kappa T) h x.
Proof.
elim: T x => [//|T IH] x end1 /=.
rewrite -(Q3_joint h x (fun i => end1 T i (ltnSn T))).
by apply: eq_bigr => z _; rewrite IH // => t i /ltnW; exact: end1.
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

(** p_{0|t}^i(v | z) = E[δ_{X_0^i}(v) | X_t = z]. *)
Definition source_token (k : I -> R) pi (i : I) (v : S) (z : states) : R :=
  mean (conditional_path k) pi z (fun h => delta (h.1 i) v).

(** V7 with α = β, for the mixture path: c^i = h α κ̇^i, the size of the step with it. *)
Definition corrector_velocity (c k : I -> R) pi (i : I) (v : S) (z : states) : R :=
  c i * ((data_token k pi i v z - delta (z i) v) / (1 - k i)
         + (source_token k pi i v z - delta (z i) v) / k i).

(** A step of position i alone. *)
Definition one_position_kernel (u : I -> S -> states -> R) (i : I) (x z : states) : R :=
  delta z x + (agree_off i x z)%:R * u i (x i) z.

(** I + G, the full field as a step: every position may move, one at a time. *)
Definition field_kernel (u : I -> S -> states -> R) (x z : states) : R :=
  delta z x + full_field u x z.

(** The corrector brings as much into x as it takes away, position by position. *)
Lemma corrector_inflow (c k : I -> R) pi i x : nonneg pi -> (forall j, 0 <= k j <= 1) ->
  0 < k i < 1 ->
  \sum_z (agree_off i x z)%:R * corrector_velocity c k pi i (x i) z * path k pi z = 0.
Proof.
move=> pi_ge0 k01 /andP [k_gt0 k_lt1].
pose w (h : pairs) (v : S) := c i * ((delta (h.2 i) (x i) - delta v (x i)) / (1 - k i)
                                     + (delta (h.1 i) (x i) - delta v (x i)) / k i).
have c_ge0 h : nonneg (conditional_path k h) by exact: conditional_path_ge0.
transitivity (\sum_z \sum_h (agree_off i z x)%:R * (conditional_path k h z * pi h * w h (z i))).
  apply: eq_bigr => z _; rewrite -mulr_sumr agree_off_sym -mulrA; congr (_ * _).
  have -> : \sum_h conditional_path k h z * pi h * w h (z i) = path k pi z * mean
      (conditional_path k) pi z (fun h => w h (z i)) by rewrite meanE.
  have [->|p_neq0] := eqVneq (path k pi z) 0; first by rewrite mulr0 mul0r.
  rewrite mulrC; congr (_ * _); rewrite /corrector_velocity mean_scale mean_add; congr (_ * _).
  have p_gt0 : 0 < path k pi z by rewrite lt0r p_neq0 path_ge0.
  have scale a f : mean (conditional_path k) pi z (fun h => f h / a) =
      mean (conditional_path k) pi z f / a.
    by rewrite mulrC -mean_scale; apply: eq_bigr => h _; rewrite [_^-1 * _]mulrC.
  by rewrite !scale !mean_sub !mean_const.
rewrite exchange_big big1 // => h _.
rewrite (sum_agree_off i x (fun z => conditional_path k h z * pi h * w h (z i))).
transitivity (pi h * (\prod_(j | j != i) mixture_token (k j) (h.1 j) (h.2 j) (x j)) *
    (\sum_v w h v * mixture_token (k i) (h.1 i) (h.2 i) v)).
  rewrite mulr_sumr; apply: eq_bigr => v _.
  rewrite /conditional_path product_law_put ffunE eqxx [LHS]mulrC [RHS]mulrC -!mulrA.
  by congr (_ * (_ * (_ * _))); exact: mulrC.
set m := mixture_token (k i) (h.1 i) (h.2 i).
have drift y : \sum_v (delta y (x i) - delta v (x i)) * m v = delta y (x i) - m (x i).
  under eq_bigr do rewrite mulrBl; rewrite sumrB -mulr_sumr sum_mixture_token mulr1.
  by rewrite sum_delta_point.
have -> : \sum_v w h v * m v = c i * ((delta (h.2 i) (x i) - m (x i)) / (1 - k i)
                                      + (delta (h.1 i) (x i) - m (x i)) / k i).
  rewrite -!drift !mulr_suml -big_split mulr_sumr; apply: eq_bigr => v _ /=.
  by rewrite /w -mulrA mulrDl; congr (_ * (_ + _)); exact: mulrAC.
have -> : delta (h.2 i) (x i) - m (x i) = (1 - k i) * (delta (h.2 i) (x i) - delta (h.1 i) (x i)).
  by rewrite /m /mixture_token; set a := delta _ _; set b := delta _ _; ring.
have -> : delta (h.1 i) (x i) - m (x i) = k i * (delta (h.1 i) (x i) - delta (h.2 i) (x i)).
  by rewrite /m /mixture_token; set a := delta _ _; set b := delta _ _; ring.
rewrite (mulrC (1 - k i)) (mulrC (k i)) !mulfK ?gt_eqF ?subr_gt0 //.
by rewrite addrA subrK subrr !mulr0.
Qed.

(** S5: a corrector step (V7 with α = β, frozen t) of one position keeps p_t exactly, for every
    size of the step, where 0 < κ^i < 1. *)
Theorem S5 (c k : I -> R) pi i x : nonneg pi -> (forall j, 0 <= k j <= 1) -> 0 < k i < 1 ->
  push_forward (one_position_kernel (corrector_velocity c k pi) i) (path k pi) x = path k pi x.
Proof.
move=> pi_ge0 k01 ki; rewrite /push_forward /one_position_kernel.
under eq_bigr do rewrite mulrDl; rewrite big_split /= corrector_inflow // addr0.
exact: sum_delta_point.
Qed.

(** S5: so does the step I + G with the full field G. *)
Theorem S5_field (c k : I -> R) pi x : nonneg pi -> (forall i, 0 < k i < 1) ->
  push_forward (field_kernel (corrector_velocity c k pi)) (path k pi) x = path k pi x.
Proof.
move=> pi_ge0 k01; rewrite /push_forward /field_kernel; under eq_bigr do rewrite mulrDl.
rewrite big_split /= sum_delta_point /full_field; under [X in _ + X]eq_bigr do rewrite mulr_suml.
rewrite exchange_big /= [X in _ + X]big1 ?addr0 // => i _; apply: corrector_inflow => // j.
by have /andP [/ltW -> /ltW ->] := k01 j.
Qed.

(** S3: the Euler step h u of V5, for one token given the pair, is the exact finite step from t to
    t + h for the linear schedule κ_t = t, t ≠ 1. *)
Theorem S3 (t h : R) (y v z : S) : t != 1 ->
  h * (1 / (1 - t) * (delta y v - delta z v)) = conditional_velocity t (t + h) y v z.
Proof.
move=> t_neq1; rewrite /conditional_velocity /step_size (negPf t_neq1) mulrA; congr (_ * _).
by rewrite div1r addrC addKr || by rewrite div1r addrAC subrr add0r.
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

(** S7 with any router: mixing the velocities with any weights at every step is drawing an expert
    for each position and step, along the whole chain (S6). *)
Theorem S7_any_router (r : nat -> I -> K -> states -> R) (u : nat -> K -> I -> S -> states -> R)
    (p : states -> R) (T : nat) : (forall t i z, \sum_k r t i k z = 1) ->
  run (fun t => step_kernel (mixed_velocity (r t) (u t))) p T =1
  run (fun t x z => \sum_(k : {ffun I -> K}) (\prod_i r t i (k i) z)
        * step_kernel (fun i => u t (k i) i) x z) p T.
Proof.
move=> sum1; elim: T => [//|T IH] x /=.
by apply: eq_bigr => z _; rewrite S6 // IH.
Qed.

End DrawnExperts.

Section Autoregressive.
Variables (R : realFieldType) (I S : finType) (s : I -> nat).
Notation states := {ffun I -> S}.
Implicit Types (x z m : states) (g : I -> S -> states -> R).

(** At step t the positions with s(i) = t are drawn from g^i(·, z), each given the same state z. *)
Definition reveal_velocity g (t : nat) (i : I) (v : S) (z : states) : R :=
  (s i == t)%:R * (g i v z - delta (z i) v).

Definition reveal_kernels g (t : nat) : states -> states -> R := step_kernel (reveal_velocity g t).

(** Π_i g^i(x^i | revealed tokens of x), with m where nothing is revealed. *)
Definition sequence_law g m (T : nat) x : R :=
  \prod_(i | (s i < T)%N) g i (x i) (cut s (s i) x m).

Lemma reveal_kernelE g t x z :
  reveal_kernels g t x z = \prod_i (if s i == t then g i (x i) z else delta (z i) (x i)).
Proof.
apply: eq_bigr => i _; rewrite /reveal_velocity; case: eqP => _.
  by rewrite mul1r addrC subrK.
by rewrite mul0r addr0.
Qed.

Lemma reveal_from g t m x z :
  reveal_kernels g t x z * (agree_from s t m z)%:R =
  delta (cut s t x m) z * ((agree_from s t.+1 m x)%:R * \prod_(i | s i == t) g i (x i) z).
Proof.
rewrite reveal_kernelE /delta; have [->|z_neq] := eqVneq z (cut s t x m).
  have -> : agree_from s t m (cut s t x m).
    by apply/forallP => i; apply/implyP => le; rewrite ffunE ltnNge le.
  rewrite mulr1 mul1r (bigID (fun i => s i == t)) /= mulrC; congr (_ * _); last first.
    by apply: eq_bigr => i ->.
  rewrite (eq_bigr (fun i => (((s i < t)%N || (m i == x i)) : bool)%:R)); last first.
    move=> i /negPf ->; rewrite /delta ffunE; case: ltnP => // _; first by rewrite eqxx.
    by rewrite eq_sym.
  rewrite (prod_indicator R (fun i => s i != t)); congr (_ %:R); congr nat_of_bool.
  by apply: eq_forallb => i /=; case: (ltngtP (s i) t).
rewrite mul0r; case: (boolP (agree_from s t m z)) => [/forallP from|_]; last by rewrite mulr0.
have [i] : exists i, z i != cut s t x m i.
  apply/existsP; rewrite -negb_forall; apply: contra z_neq => /forallP same.
  by apply/eqP/ffunP => i; apply/eqP.
rewrite ffunE; case: ltnP => [lt zi|le]; last by have := from i; rewrite le eq_sym /= => ->.
by rewrite (bigD1 i) //= (ltn_eqF lt) /delta eq_sym (negPf zi) !mul0r.
Qed.

(** S1 for any order and blocks: drawing each position from any g^i given the revealed tokens,
    started at the sequence m, gives the product of the conditionals. *)
Theorem S1_any_order g m (T : nat) x :
  run (reveal_kernels g) (delta m) T x = (agree_from s T m x)%:R * sequence_law g m T x.
Proof.
elim: T x => [|t IH] x /=.
  rewrite /sequence_law big_pred0 ?mulr1 // /delta; congr (_ %:R); congr nat_of_bool.
  apply/eqP/forallP => [-> i|same]; first by rewrite eqxx implybT.
  by apply/ffunP => i; apply/eqP; rewrite eq_sym; have := same i; rewrite leq0n.
rewrite /push_forward; under eq_bigr => z _ do rewrite IH mulrA reveal_from -mulrA.
rewrite (sum_delta (cut s t x m) (fun z => (agree_from s t.+1 m x)%:R *
  (\prod_(i | s i == t) g i (x i) z) * sequence_law g m t z)) -mulrA; congr (_ * _).
rewrite [in RHS]/sequence_law [RHS](bigID (fun i => s i == t)) /=; congr (_ * _).
  apply: eq_big => [i|i /eqP ->] //; rewrite ltnS; by case: eqP => [->|_]; rewrite ?leqnn ?andbF.
apply: eq_big => [i|i lt]; first by rewrite ltnS andbC -ltn_neqAle.
rewrite ffunE lt; congr (g i _ _); apply/ffunP => j; rewrite !ffunE.
by case: (ltnP (s j) (s i)) => // ji; rewrite (ltn_trans ji lt).
Qed.

(** S1: with every position revealed by step T, q̂(x) = Π_i q̂^i(x^i | revealed before i): for left
    to right the product of the next-token probabilities, so that the logs add up. *)
Theorem S1 g m (T : nat) x : (forall i, (s i < T)%N) ->
  run (reveal_kernels g) (delta m) T x = \prod_i g i (x i) (cut s (s i) x m).
Proof.
move=> le; rewrite S1_any_order /sequence_law.
have -> : agree_from s T m x by apply/forallP => i; rewrite leqNgt le.
by rewrite mul1r; apply: eq_bigl => i; rewrite le.
Qed.

(** S1 is exact (by A3 and Q5): with the next-token conditionals of q, any source law p and one
    position a step, the last state has the law q. *)
Theorem S1_exact (p q : states -> R) (T : nat) x : injective s -> (forall i, (s i < T)%N) ->
  law p -> law q -> run (fun t => step_kernel (next_token_velocity s q t)) p T x = q x.
Proof.
move=> s_inj le [p_ge0 p_sum] [q_ge0 q_sum].
have all_steps : forall t, run (fun t => step_kernel (next_token_velocity s q t)) p t
    =1 path (order_table R s t) (independent p q).
  elim=> [|t IH] y /=.
    by rewrite path_source // /source_law /independent /= -mulr_sumr q_sum mulr1.
  by rewrite (A3_Q5 t y s_inj p_ge0 q_ge0); apply: eq_bigr => z _; rewrite IH.
rewrite all_steps path_data => [|i]; last by rewrite /order_table le.
by rewrite /data_law /independent /= -mulr_suml p_sum mul1r.
Qed.

End Autoregressive.

Section OneExpert.
Variables (R : realFieldType) (K : finType).
Implicit Types (w : K -> R) (f : nat -> K -> R).

(** The running gate: r_0 = w, r_{t+1}(k) = r_t(k) f_t(k) / Σ_j r_t(j) f_t(j), where f_t(k) is the
    probability that expert k gives to the token of step t. *)
Fixpoint running_gate w f (t : nat) (k : K) : R :=
  if t is t'.+1 then running_gate w f t' k * f t' k / (\sum_j running_gate w f t' j * f t' j)
  else w k.

Lemma running_gate_ge0 w f t : nonneg w -> (forall t, nonneg (f t)) -> nonneg (running_gate w f t).
Proof.
move=> w_ge0 f_ge0; elim: t => [//|t IH] k /=.
by rewrite divr_ge0 ?mulr_ge0 //; apply: sumr_ge0 => j _; rewrite mulr_ge0.
Qed.

Lemma running_gate_ext w f f' t : (forall j, (j < t)%N -> f j =1 f' j) ->
  running_gate w f t =1 running_gate w f' t.
Proof.
elim: t => [//|t IH] same k /=; have gates := IH (fun j lt => same j (ltnW lt)).
rewrite gates same //; congr (_ / _); apply: eq_bigr => j _.
by rewrite gates same.
Qed.

(** Along one sequence: Π_{t<n} (Σ_j r_t(j) f_t(j)) · r_n(k) = w_k Π_{t<n} f_t(k), also where every
    expert gives 0. *)
Lemma running_gate_product w f (n : nat) k : nonneg w -> (forall t, nonneg (f t)) ->
  (\prod_(t < n) \sum_j running_gate w f t j * f t j) * running_gate w f n k =
  w k * \prod_(t < n) f t k.
Proof.
move=> w_ge0 f_ge0; elim: n k => [|n IH] k; first by rewrite !big_ord0 mul1r mulr1.
rewrite !big_ord_recr /= [RHS]mulrA -IH.
set a := \prod_(_ < n) _; set b := \sum_j _; rewrite -!mulrA; congr (_ * _).
have [b0|b_neq0] := eqVneq b 0; last by rewrite mulrC -!mulrA mulVf ?mulr1.
rewrite b0 mul0r; symmetry; move: (k); apply: sum_nonneg_eq0 b0 => j.
by rewrite mulr_ge0 // running_gate_ge0.
Qed.

(** S7 along one sequence: the product of the gated token probabilities is the mixture
    Σ_k w_k Π_t f_t(k), for any experts: drawing k once with w and keeping it is the same. *)
Theorem S7_sequence w f (n : nat) : law w -> (forall t, nonneg (f t)) ->
  \prod_(t < n) (\sum_k running_gate w f t k * f t k) = \sum_k w k * \prod_(t < n) f t k.
Proof.
move=> [w_ge0 w_sum] f_ge0; case: n => [|n].
  by rewrite big_ord0 -[LHS]w_sum; apply: eq_bigr => k _; rewrite big_ord0 mulr1.
rewrite big_ord_recr /= mulr_sumr; apply: eq_bigr => k _.
by rewrite mulrA running_gate_product // big_ord_recr /= mulrA.
Qed.

(** The running gate is the Bayes gate: r_n(k) = w_k Π_{t<n} f_t(k) / Σ_j w_j Π_{t<n} f_t(j). *)
Theorem S7_gate_is_bayes w f (n : nat) k : law w -> (forall t, nonneg (f t)) ->
  let likelihood j (_ : unit) := \prod_(t < n) f t j in
  0 < mixture w likelihood tt -> running_gate w f n k = gate w likelihood tt k.
Proof.
move=> w_law f_ge0 likelihood gt0; have [w_ge0 _] := w_law.
have mixE : mixture w likelihood tt = \prod_(t < n) (\sum_j running_gate w f t j * f t j).
  by rewrite S7_sequence.
rewrite /gate -[w k * _]/(w k * \prod_(t < n) f t k) -(running_gate_product n k w_ge0 f_ge0) -mixE.
by rewrite mulrAC divff ?mul1r // gt_eqF.
Qed.

Variables (n : nat) (S : finType).
Notation states := {ffun 'I_n -> S}.
Notation chain := (reveal_kernels (@nat_of_ord n)).
Implicit Types (x z m : states) (g : K -> 'I_n -> S -> states -> R).

(** f_t(k) = q_k(z^t | z^{<t}), read off the state z (1 for t ≥ n). *)
Definition token_likelihood g m z (t : nat) (k : K) : R :=
  \prod_(i : 'I_n | i == t :> nat) g k i (z i) (cut (@nat_of_ord n) t z m).

(** The token-wise mixture with the running gate: Σ_k r_k(z^{<i}) q_k(v | z). *)
Definition gated_token w g m (i : 'I_n) (v : S) (z : states) : R :=
  \sum_k running_gate w (token_likelihood g m z) i k * g k i v z.

(** S7: with the running Bayes gate (D7) and one-position steps, the chain that mixes the experts
    at every token has the same law as drawing k with w once and running expert k's chain to the
    end: Σ_k w_k q_k(x). Any experts of values that are not negative, normalised or not. *)
Theorem S7 w g m x : law w -> (forall k i v z, 0 <= g k i v z) ->
  run (chain (gated_token w g m)) (delta m) n x =
  \sum_k w k * run (chain (g k)) (delta m) n x.
Proof.
move=> w_law g_ge0; rewrite S1 //.
have token (i : 'I_n) k : token_likelihood g m x i k = g k i (x i) (cut (@nat_of_ord n) i x m).
  by rewrite /token_likelihood (big_pred1 i) // => j; rewrite /= -val_eqE.
under [RHS]eq_bigr => k _.
  rewrite S1 //; under eq_bigr do rewrite -token; over.
rewrite -S7_sequence // => [|t k]; last by apply: prodr_ge0 => i _; exact: g_ge0.
apply: eq_bigr => i _; apply: eq_bigr => k _; rewrite token; congr (_ * _).
apply: running_gate_ext => t lt j; apply: eq_big => // l /eqP lt_eq.
rewrite ffunE lt_eq lt; congr (g j l _ _); apply/ffunP => a; rewrite !ffunE.
by case: (ltnP a t) => // at_lt; rewrite (ltn_trans at_lt lt).
Qed.

End OneExpert.

Section OneMaskedPosition.
Variables (R : realFieldType) (I V : finType) (q : {ffun I -> V} -> R).
Notation states := {ffun I -> option V}.
Notation sequences := {ffun I -> V}.
Implicit Types (x y : sequences) (z : states).

(** None is the mask. The sequence x shows the revealed tokens of z. *)
Definition extends x z : bool := [forall i, (z i == None) || (z i == Some (x i))].

Definition all_masks : states := [ffun=> None].
Definition all_revealed x : states := [ffun i => Some (x i)].

(** q(revealed tokens of z). *)
Definition revealed_law z : R := \sum_x (extends x z)%:R * q x.

(** q(X^i = v | revealed tokens of z). *)
Definition revealed_token (i : I) (v : V) z : R :=
  (\sum_x (extends x z)%:R * (x i == v)%:R * q x) / revealed_law z.

(** q(x | revealed tokens of z). *)
Definition completion x z : R := (extends x z)%:R * q x / revealed_law z.

(** One step: position i with probability a(i | z), then its token from the posterior. *)
Definition choice_kernel (a : I -> states -> R) (z' z : states) : R :=
  \sum_i a i z * (\sum_v delta (put z i (Some v)) z' * revealed_token i v z).

(** One step whose choice of a position reads the draws v: every position is drawn from its
    posterior, then one of them is kept, position i with weight a(i | v, z). *)
Definition draw_choice_kernel (a : I -> sequences -> states -> R) (z' z : states) : R :=
  \sum_(v : sequences) (\prod_i revealed_token i (v i) z) *
    (\sum_i a i v z * delta (put z i (Some (v i))) z').

Hypothesis q_law : law q.
Variable a : nat -> I -> states -> R.
Hypothesis a_sum : forall t z, \sum_i a t i z = 1.
Notation chain := (run (fun t => choice_kernel (a t)) (delta all_masks)).

Lemma extends_put x z i v : z i = None ->
  extends x (put z i (Some v)) = extends x z && (x i == v).
Proof.
move=> zi; apply/forallP/andP => [ext|[/forallP ext /eqP xi] j].
  have xi : x i == v by have := ext i; rewrite ffunE eqxx /= eq_sym.
  split=> //; apply/forallP => j; have := ext j; rewrite ffunE.
  by case: (j =P i) => // ->; rewrite zi.
by rewrite ffunE; case: (j =P i) => [->|_]; [rewrite xi eqxx | exact: ext].
Qed.

Lemma extends_at x z i w : z i = Some w -> extends x z -> x i = w.
Proof. by move=> zi /forallP /(_ i); rewrite zi => /eqP [->]. Qed.

Lemma put_same z i w : z i = Some w -> put z i (Some w) = z.
Proof. by move=> zi; apply/ffunP => j; rewrite ffunE; case: (j =P i) => [->|]. Qed.

Lemma revealed_law_term x z : revealed_law z = 0 -> (extends x z)%:R * q x = 0.
Proof.
have [q_ge0 _] := q_law.
have term_ge0 y : 0 <= (extends y z)%:R * q y by rewrite mulr_ge0 ?ler0n.
by move=> r0; exact: (sum_nonneg_eq0 term_ge0 r0 x).
Qed.

(** q(x | z) is the mean of q(x | z') over the token drawn at position i. *)
Lemma completion_mean x z i : revealed_law z != 0 ->
  \sum_v revealed_token i v z * completion x (put z i (Some v)) = completion x z.
Proof.
move=> r_neq0; case zi : (z i) => [w|].
  have token v : revealed_token i v z = delta w v.
    rewrite /revealed_token /delta; have [->|v_neq] := eqVneq v w.
      rewrite -[RHS](divff r_neq0); congr (_ / _); apply: eq_bigr => y _.
      have [ext|_] := boolP (extends y z); last by rewrite !mul0r.
      by rewrite (extends_at zi ext) eqxx mulr1.
    rewrite big1 ?mul0r // => y _; have [ext|_] := boolP (extends y z); last by rewrite !mul0r.
    by rewrite (extends_at zi ext) eq_sym (negPf v_neq) mulr0 mul0r.
  under eq_bigr do rewrite token.
  by rewrite (sum_delta w (fun v => completion x (put z i (Some v)))) put_same.
transitivity (\sum_v delta (x i) v * completion x z); last exact: sum_delta.
apply: eq_bigr => v _.
have -> : revealed_token i v z = revealed_law (put z i (Some v)) / revealed_law z.
  congr (_ / _); apply: eq_bigr => y _; rewrite -natrM mulnb -extends_put //.
have eq_term : (extends x (put z i (Some v)))%:R * q x = delta (x i) v * ((extends x z)%:R * q x).
  by rewrite extends_put // mulrA -natrM mulnb andbC eq_sym.
rewrite /completion; have [r0|r_neq] := eqVneq (revealed_law (put z i (Some v))) 0.
  by rewrite r0 !mul0r [RHS]mulrA -eq_term revealed_law_term ?mul0r.
rewrite eq_term [RHS]mulrA; set b := revealed_law (put z i (Some v)) in r_neq *.
by rewrite [LHS]mulrC [LHS]mulrA mulfVK.
Qed.

Lemma chain_support t z : chain t z != 0 -> revealed_law z != 0.
Proof.
have [q_ge0 q_sum] := q_law; elim: t z => [|t IH] z.
  rewrite /= /delta; case: (z =P all_masks) => [-> _|_]; last by rewrite eqxx.
  rewrite /revealed_law (eq_bigr q) ?q_sum ?oner_eq0 // => x _.
  have -> : extends x all_masks by apply/forallP => i; rewrite ffunE.
  by rewrite mul1r.
apply: contraNneq => r0 /=; rewrite /push_forward big1 // => y _.
have [->|/IH y_neq0] := eqVneq (chain t y) 0; first by rewrite mulr0.
rewrite /choice_kernel big1 ?mul0r // => i _; rewrite big1 ?mulr0 // => v _.
rewrite /delta; case: eqP => [z_eq|_]; last by rewrite mul0r.
rewrite /revealed_token big1 ?mul0r ?mulr0 // => x _.
rewrite -natrM mulnb; suff sub : extends x y && (x i == v) -> extends x z.
  have := revealed_law_term x r0; case: (boolP (_ && _)) => [/sub ->|_] //; by rewrite mul0r.
move=> /andP [/forallP ext /eqP xi]; apply/forallP => j; rewrite z_eq ffunE.
by case: (j =P i) => [->|_]; [rewrite xi eqxx | exact: ext].
Qed.

(** The mean of q(x | Z_t) does not change from step to step. *)
Lemma chain_completion t x : \sum_z chain t z * completion x z = q x.
Proof.
have [q_ge0 q_sum] := q_law; elim: t => [|t IH].
  rewrite /= sum_delta /completion /revealed_law.
  have ext y : extends y all_masks by apply/forallP => i; rewrite ffunE.
  by under eq_bigr do rewrite ext mul1r; rewrite ext mul1r q_sum divr1.
rewrite -[RHS]IH /= /push_forward; under eq_bigr do rewrite mulr_suml.
rewrite exchange_big; apply: eq_bigr => z _ /=.
have [->|/chain_support r_neq0] := eqVneq (chain t z) 0.
  by rewrite mul0r big1 // => y _; rewrite mulr0 mul0r.
under eq_bigr do rewrite mulrAC mulrC; rewrite -mulr_sumr; congr (_ * _).
transitivity (\sum_i a t i z * completion x z); last by rewrite -mulr_suml a_sum mul1r.
rewrite /choice_kernel; under eq_bigr do rewrite mulr_suml; rewrite exchange_big.
apply: eq_bigr => i _ /=; under eq_bigr do rewrite -mulrA; rewrite -mulr_sumr; congr (_ * _).
rewrite -(completion_mean x i r_neq0); under eq_bigr do rewrite mulr_suml.
rewrite exchange_big; apply: eq_bigr => v _ /=.
under eq_bigr do rewrite -mulrA; rewrite sum_delta; by [].
Qed.

(** S8: all masks at the start, exact token posteriors, one position a step, chosen by any weights
    a_t(i | z) that sum to 1 and so do not read this step's draw: once every position is revealed,
    the law is q. Random choices are allowed, and the choice may read the revealed tokens. *)
Theorem S8 (T : nat) x : (forall z i, chain T z != 0 -> z i != None) ->
  chain T (all_revealed x) = q x.
Proof.
move=> complete; rewrite -(chain_completion T x) (bigD1 (all_revealed x)) //= [X in _ + X]big1.
  have ext y : extends y (all_revealed x) = (y == x).
    apply/forallP/eqP => [same|-> i]; last by rewrite ffunE eqxx orbT.
    by apply/ffunP => i; have := same i; rewrite ffunE /= => /eqP [].
  have r_eq : revealed_law (all_revealed x) = q x.
    by rewrite /revealed_law; under eq_bigr do rewrite ext; exact: (sum_delta x q).
  rewrite addr0 /completion r_eq ext eqxx mul1r.
  have [c0|/chain_support] := eqVneq (chain T (all_revealed x)) 0; first by rewrite c0 mul0r.
  by rewrite r_eq => q_neq0; rewrite divff // mulr1.
move=> z z_neq; have [->|c_neq0] := eqVneq (chain T z) 0; first by rewrite mul0r.
suff -> : completion x z = 0 by rewrite mulr0.
rewrite /completion; case: (boolP (extends x z)) => [/forallP ext|_]; last by rewrite !mul0r.
case/eqP: z_neq; apply/ffunP => i; rewrite ffunE; apply/eqP.
by have := ext i; rewrite (negPf (complete z i c_neq0)).
Qed.

Lemma sum_neq0 (T : finType) (f : T -> R) : \sum_b f b != 0 -> exists b, f b != 0.
Proof.
move=> neq; apply/existsP; apply: contraNT neq; rewrite negb_exists => /forallP f0.
by rewrite big1 // => b _; apply/eqP; have := f0 b; rewrite negbK.
Qed.

Definition masks z : nat := #|[pred i | z i == None]|.

Lemma masks_put z i v : masks z = ((z i == None) + masks (put z i (Some v)))%N.
Proof.
rewrite /masks (cardD1 i); congr (_ + _)%N; apply: eq_card => j.
by rewrite !inE ffunE; case: (j =P i).
Qed.

(** S8 with a choice among the masked positions while there are any: after one step for each
    position everything is revealed, and the law is q. *)
Theorem S8_masked_choice x :
  (forall t z i, a t i z != 0 -> (0 < masks z)%N -> z i = None) ->
  chain #|I| (all_revealed x) = q x.
Proof.
move=> choice; have count t : forall z, chain t z != 0 -> masks z = (#|I| - t)%N.
  elim: t => [|t IH] z /=.
    rewrite /delta; case: (z =P all_masks) => [-> _|_]; last by rewrite eqxx.
    by rewrite subn0; apply: eq_card => i; rewrite !inE ffunE.
  rewrite /push_forward => /sum_neq0 [y]; rewrite mulf_eq0 negb_or => /andP [k_neq0 /IH y_masks].
  have [i] := sum_neq0 k_neq0; rewrite mulf_eq0 negb_or => /andP [a_neq0 /sum_neq0 [v]].
  rewrite mulf_eq0 negb_or /delta => /andP [z_eq _].
  have {z_eq} -> : z = put y i (Some v).
    by apply/eqP; apply: contraNT z_eq => /negPf ->.
  have := masks_put y i v; have [none|some] := posnP (masks y).
    by move: y_masks; rewrite none subnS => <- /esym /eqP; rewrite addn_eq0 => /andP [_ /eqP ->].
  by rewrite (choice _ _ _ a_neq0 some) eqxx subnS -y_masks => ->.
apply: S8 => z i /count; rewrite subnn => /eqP; rewrite -leqn0 leqNgt; apply: contra => zi.
by apply/card_gt0P; exists i; rewrite inE.
Qed.

End OneMaskedPosition.

(** Instances on which the statements fail without a hypothesis: two positions, two states. *)
Section Counterexamples.
Variable R : realFieldType.
Notation bits := {ffun bool -> bool}.
Notation half := (2%:R^-1 : R).

(** From (0, 0) to (0, 0) or (1, 1), of mass 1/2 each. *)
Definition to_constant (h : bits * bits) : R := \sum_(b : bool) half * delta (zeros, constant b) h.

Lemma to_constant_start z : path (at_start R) to_constant z = delta zeros z.
Proof.
rewrite /path marginal_points; under eq_bigr do rewrite conditional_start.
by rewrite big_bool /= -mulrDl half2 mul1r.
Qed.

Lemma to_constant_token i : data_token (at_start R) to_constant i true zeros = half.
Proof.
rewrite /data_token mean_as_marginal -/(path _ _ _) to_constant_start /delta eqxx divr1.
rewrite marginal_points; under eq_bigr do rewrite conditional_start /delta eqxx mul1r ffunE.
by rewrite big_bool /= mulr1 mulr0 addr0.
Qed.

(** S4 and S2 are false if two positions are pending: the one step from κ = 0 to κ = 1 gives (1, 1)
    the mass 1/4 instead of 1/2. *)
Theorem S4_without_one_pending :
  data_law to_constant ones
    - push_forward (final_kernel (at_start R) to_constant) (path (at_start R) to_constant) ones
  = 4%:R^-1.
Proof.
rewrite /push_forward; under eq_bigr do rewrite to_constant_start mulrC.
rewrite sum_delta /final_kernel big_bool /at_start eq_sym oner_eq0 !ffunE !to_constant_token.
have -> : data_law to_constant ones = half.
  rewrite -(path_data (k := fun=> 1)) // /path marginal_points big_bool /conditional_path.
  rewrite /product_law !big_bool /mixture_token /delta /= !ffunE /=; ring.
by rewrite /=; field.
Qed.

(** Expert k writes k at both positions. *)
Definition writes (k : bool) (i : bool) (v : bool) (z : bits) : R := delta k v - delta (z i) v.

(** S6 with one k for all is false if two positions move: (1, 1) has the mass 1/2 with one k for
    both positions, and 1/4 in the step of the mixed velocity. *)
Theorem S6_shared_without_one_position :
  \sum_(k : bool) half * step_kernel (writes k) ones zeros
    - step_kernel (mixed_velocity (fun _ _ _ => half) writes) ones zeros = 4%:R^-1.
Proof.
rewrite /step_kernel /product_law /mixed_velocity /writes !big_bool /delta !ffunE /=.
by field.
Qed.

(** S7 with a static router is false: two tokens, expert k gives k the probability 1. The kept
    expert gives (1, 1) the mass 1/2, the static gate at every token 1/4. *)
Theorem S7_without_running_gate :
  \sum_(k : bool) half * (\prod_(t < 2) (true == k)%:R)
    - \prod_(t < 2) (\sum_(k : bool) half * (true == k)%:R) = 4%:R^-1.
Proof.
rewrite big_bool !big_ord_recl !big_ord0 !big_bool /=.
by field.
Qed.

(** S2 is false without one position per state: one step of the pairs of Q5's counterexample. *)
Theorem S2_without_one_position_per_state :
  let kappa (t : nat) := if t is 0%N then at_start R else at_half R in
  run (step_kernels kappa (two_pairs R)) (path (kappa 0%N) (two_pairs R)) 1 ones
    - path (kappa 1%N) (two_pairs R) ones = 16%:R^-1.
Proof. by have [] := Q5_without_one_position_per_state R. Qed.

(** S3 is false for another schedule, κ_t = t²: from t = 0, where κ̇ = 0, Euler does not move. *)
Theorem S3_without_linear_schedule :
  conditional_velocity 0 (half ^+ 2) true true false
    - half * (2%:R * 0 / (1 - 0) * (delta true true - delta false true)) = 4%:R^-1 :> R.
Proof.
by rewrite /conditional_velocity /step_size eq_sym oner_eq0 /delta /=; field.
Qed.

(** Two fair coins. *)
Definition coins (x : bits) : R := 4%:R^-1.

(** The position true first if its draw is true, else the position false; then the other. *)
Definition keep_true_draw (i : bool) (v : bits) (z : {ffun bool -> option bool}) : R :=
  (i == if z true == None then (if z false == None then v true else true) else false)%:R.

Definition two_bits (a b : bool) : bits := [ffun i => if i then a else b].

Lemma sum_bits (f : bits -> R) : \sum_x f x = \sum_(a : bool) \sum_(b : bool) f (two_bits a b).
Proof.
rewrite pair_bigA (reindex (fun ab : bool * bool => two_bits ab.1 ab.2)) //=.
exists (fun x : bits => (x true, x false)) => [[a b] _|x _] /=; first by rewrite !ffunE.
by apply/ffunP => -[]; rewrite ffunE.
Qed.

Lemma extends_bits (x : bits) z : extends x z =
  ((z true == None) || (z true == Some (x true)))
  && ((z false == None) || (z false == Some (x false))).
Proof.
by apply/forallP/andP => [all|[t f] []].
Qed.

Lemma coins_token i v (z : {ffun bool -> option bool}) :
  z i = None -> revealed_token coins i v z = half.
Proof.
move=> zi; rewrite /revealed_token /revealed_law !sum_bits !big_bool /= !extends_bits !ffunE /=.
rewrite /coins; case: i zi => -> /=; case: (z _) => [[]|] /=; case: v => /=; by field.
Qed.

Lemma coins_revealed i w v (z : {ffun bool -> option bool}) :
  z i = Some w -> revealed_token coins i v z = delta w v.
Proof.
move=> zi; rewrite /revealed_token /revealed_law !sum_bits !big_bool /= !extends_bits !ffunE /=.
rewrite /coins /delta; case: i zi => -> /=; case: (z _) => [[]|] /=; case: w; case: v => /=;
  by field.
Qed.

Lemma delta_bits (y z : {ffun bool -> option bool}) :
  delta y z = ((z true == y true) && (z false == y false))%:R :> R.
Proof.
rewrite /delta; congr (_ %:R); congr nat_of_bool; apply/eqP/andP => [-> //|[/eqP t /eqP f]].
by apply/ffunP => -[].
Qed.

Definition kept (a : bool) (z : {ffun bool -> option bool}) : bool :=
  if z true == None then (if z false == None then a else true) else false.

Lemma keep_true_kernel (z' z : {ffun bool -> option bool}) :
  draw_choice_kernel coins keep_true_draw z' z = \sum_(a : bool) \sum_(b : bool)
    revealed_token coins true a z * revealed_token coins false b z
      * delta (put z (kept a z) (Some (if kept a z then a else b))) z'.
Proof.
rewrite /draw_choice_kernel sum_bits; apply: eq_bigr => a _; apply: eq_bigr => b _.
rewrite big_bool !ffunE /=; congr (_ * _).
have := sum_delta (kept a z)
  (fun i => delta (put z i (Some (if i then a else b))) z' : R) => <-.
by apply: eq_bigr => i _; rewrite /keep_true_draw !ffunE.
Qed.

(** S8 is false if the choice reads this step's draws: keeping a draw of true first gives (0, 0)
    the mass 1/8 instead of 1/4. *)
Theorem S8_without_choice_blind_to_draws :
  law coins /\
  coins zeros - run (fun=> draw_choice_kernel coins keep_true_draw)
    (delta (all_masks bool_finType bool_finType)) 2 (all_revealed zeros) = 8%:R^-1.
Proof.
split; first split=> [x|]; first by rewrite invr_ge0 ler0n.
  by rewrite sum_bits !big_bool /= /coins; field.
set m := all_masks _ _; set K := draw_choice_kernel _ _.
have second j w : K (all_revealed zeros) (put m j (Some w)) = if w then 0 else half.
  rewrite /K keep_true_kernel !big_bool /kept /= !ffunE /=.
  have revealed v : revealed_token coins j v (put m j (Some w)) = delta w v.
    by apply: coins_revealed; rewrite ffunE eqxx.
  have masked v : revealed_token coins (~~ j) v (put m j (Some w)) = half.
    by apply: coins_token; rewrite !ffunE; case: (j).
  case: j revealed masked => /= revealed masked; rewrite !revealed !masked !delta_bits !ffunE /=;
    rewrite /delta; case: w {revealed masked} => /=; by field.
have -> : run (fun=> K) (delta m) 2 (all_revealed zeros) =
    \sum_(a : bool) \sum_(b : bool) 4%:R^-1 * K (all_revealed zeros)
      (put m a (Some (if a then a else b))).
  rewrite /= /push_forward.
  transitivity (\sum_z K (all_revealed zeros) z * K z m).
    apply: eq_bigr => z _; congr (_ * _); rewrite -[RHS](sum_delta m (K z)).
    by apply: eq_bigr => y _; rewrite mulrC.
  under eq_bigr do rewrite [X in _ * X]keep_true_kernel mulr_sumr.
  rewrite exchange_big; apply: eq_bigr => a _ /=; under eq_bigr do rewrite mulr_sumr.
  rewrite exchange_big; apply: eq_bigr => b _ /=.
  have tok i v : revealed_token coins i v m = half by apply: coins_token; rewrite ffunE.
  have -> : kept a m = a by rewrite /kept !ffunE.
  rewrite -(sum_delta (put m a (Some (if a then a else b))) (K (all_revealed zeros))) mulr_sumr.
  apply: eq_bigr => z _; rewrite !tok; have -> : 4%:R^-1 = half * half by rewrite -invfM -natrM.
  by rewrite mulrC -!mulrA; congr (_ * (_ * _)); rewrite mulrC.
by rewrite !big_bool /= !second /coins; field.
Qed.

(** S1 with next-token laws that forget the prefix is not exact: for data (0, 0) or (1, 1) the
    marginals 1/2 give (0, 0) the mass 1/4 instead of 1/2. *)
Theorem S1_without_prefix :
  let q (y : bits) := \sum_(b : bool) half * delta (constant b) y in
  [/\ forall i v, token_law q i v = half, q (constant false) = half &
      run (reveal_kernels nat_of_bool (fun i v _ => token_law q i v)) (delta zeros) 2
        (constant false) = 4%:R^-1].
Proof.
move=> q; have marginals i v : token_law q i v = half.
  have sum_q (f : bits -> R) :
      \sum_y f y * q y = half * f (constant true) + half * f (constant false).
    transitivity (\sum_(b : bool) half * f (constant b)); last by rewrite big_bool.
    rewrite /q; under eq_bigr do rewrite mulr_sumr.
    rewrite exchange_big; apply: eq_bigr => b _ /=.
    rewrite -(sum_delta (constant b) f) mulr_sumr; apply: eq_bigr => y _.
    by rewrite mulrCA (mulrC (f y)).
  by rewrite /token_law sum_q !ffunE; case: v; rewrite /=; ring.
split=> //.
  have neq : (constant false == constant true) = false.
    by apply/eqP => /ffunP /(_ true); rewrite !ffunE.
  by rewrite /q big_bool /delta /= neq eqxx mulr0 add0r mulr1.
rewrite S1; last by case.
by rewrite big_bool /= !marginals -invfM -natrM.
Qed.

Lemma to_constant_pair b (z : bits) :
  conditional_path (at_half R) (zeros, constant b) z = if b then 4%:R^-1 else delta zeros z.
Proof.
case: b; last first.
  rewrite -delta_all; apply: eq_bigr => i _ /=.
  have -> : constant false = zeros by apply/ffunP => j; rewrite !ffunE.
  exact: mixture_token_same.
rewrite /conditional_path /product_law big_bool /mixture_token !ffunE /at_half /delta /=.
by case: (z true); case: (z false) => /=; field.
Qed.

(** S5 is false for the product kernel, all positions at once: with c = 1/4 at κ = 1/2 the mass of
    (1, 1) falls from 1/8 to 1/10. *)
Theorem S5_without_one_position :
  path (at_half R) to_constant ones
    - push_forward (step_kernel (corrector_velocity (fun=> 4%:R^-1) (at_half R) to_constant))
        (path (at_half R) to_constant) ones = 40%:R^-1.
Proof.
have pathE z : path (at_half R) to_constant z = half * 4%:R^-1 + half * delta zeros z.
  by rewrite /path marginal_points big_bool !to_constant_pair.
have data i z : data_token (at_half R) to_constant i true z =
    half * 4%:R^-1 / (half * 4%:R^-1 + half * delta zeros z).
  rewrite /data_token mean_as_marginal -/(path _ _ _) pathE marginal_points big_bool.
  by rewrite !to_constant_pair /delta /= !ffunE /= mulr1 !mulr0 addr0.
have source i z : source_token (at_half R) to_constant i true z = 0.
  rewrite /source_token mean_as_marginal marginal_points big_bool /delta /= !ffunE /=.
  by rewrite !mulr0 addr0 mul0r.
have factor i (z : bits) :
    delta (z i) true + corrector_velocity (fun=> 4%:R^-1) (at_half R) to_constant i true z =
    half * (half * 4%:R^-1 / (half * 4%:R^-1 + half * delta zeros z)).
  rewrite /corrector_velocity data source /at_half; set d := half * _ / _; set e := delta _ _.
  by field.
have kernel (z : bits) :
    step_kernel (corrector_velocity (fun=> 4%:R^-1) (at_half R) to_constant) ones z =
    (half * (half * 4%:R^-1 / (half * 4%:R^-1 + half * delta zeros z))) ^+ 2.
  by rewrite /step_kernel /product_law big_bool !ffunE !factor expr2.
rewrite /push_forward sum_bits !big_bool /= !kernel !pathE.
have zeroE (z : bits) : delta zeros z = ((z true == false) && (z false == false))%:R :> R.
  rewrite /delta; congr (_ %:R); congr nat_of_bool; apply/eqP/andP => [->|[/eqP t /eqP f]].
    by rewrite !ffunE.
  by apply/ffunP => -[]; rewrite ffunE.
rewrite !zeroE !ffunE /= mulr0 addr0 mulr1.
by field.
Qed.

End Counterexamples.
