(** V1 to V9 and C1: velocities that generate a path.

    p and its derivative dp are given by their values at one time; Continuity.v supplies dp as a
    derivative in the sense of analysis. A velocity u generates (p, dp) if Σ_z u(x, z) p(z) = dp(x)
    for every x. If its columns sum to 0, that is the continuity equation: see `continuity`. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section OneToken.
Variables (R : realFieldType) (S : finType).
Implicit Types (u : S -> S -> R) (p dp : S -> R).

(** Σ_z u(v, z) p(z): the inflow minus the outflow at v. *)
Definition flow (Z : finType) (u : Z -> Z -> R) (p : Z -> R) (x : Z) : R := \sum_z u x z * p z.

Definition generates (Z : finType) (u : Z -> Z -> R) (p dp : Z -> R) := forall x, flow u p x = dp x.

(** V1. Σ_v u(v, z) = 0 and u(v, z) ≥ 0 for v ≠ z. *)
Definition rate (Z : finType) (u : Z -> Z -> R) :=
  (forall z, \sum_v u v z = 0) /\ (forall v z, v != z -> 0 <= u v z).

(** The velocity with the off-diagonal values u(v, z), whose columns sum to 0. *)
Definition with_diagonal (Z : finType) (u : Z -> Z -> R) (v z : Z) : R :=
  if v == z then - \sum_(y | y != z) u y z else u v z.

(** κ̇/(1 − κ) [δ_{x_1}(v) − δ_z(v)]. *)
Definition mixture_velocity (kappa dkappa : R) (x1 v z : S) : R :=
  dkappa / (1 - kappa) * (delta x1 v - delta z v).

(** κ̇/κ [δ_z(v) − δ_{x_0}(v)]. *)
Definition backward_velocity (kappa dkappa : R) (x0 v z : S) : R :=
  dkappa / kappa * (delta z v - delta x0 v).

(** κ̇/(1 − κ) [p̂(v) − δ_z(v)] for the posterior p̂ of the token at z. *)
Definition posterior_to_velocity (kappa dkappa : R) (post : S -> R) (v z : S) : R :=
  dkappa / (1 - kappa) * (post v - delta z v).

(** κ̇/κ [δ_z(v) − p̂(v)] for the posterior p̂ of the source's token at z. *)
Definition posterior_to_backward (kappa dkappa : R) (post : S -> R) (v z : S) : R :=
  dkappa / kappa * (delta z v - post v).

(** Σ_j a^j h^j(v) + b δ_z(v), a^j = κ̇^j − κ^j b. *)
Definition convex_velocity (J : finType) (kappa dkappa : J -> R) (h : J -> S -> R) (b : R)
    (v z : S) : R :=
  \sum_j (dkappa j - kappa j * b) * h j v + b * delta z v.

(** [p(z) ṗ(v) − ṗ(z) p(v)]_+ / p(z), off the diagonal. *)
Definition kinetic_optimal (p dp : S -> R) (v z : S) : R :=
  Num.max 0 (p z * dp v - dp z * p v) / p z.

(** [ṗ(v) − ṗ(z)]_+ / (Z p(z)) where p(v) > 0 and p(z) > 0, off the diagonal; Z = #{p > 0}. *)
Definition campbell (p dp : S -> R) (v z : S) : R :=
  if (0 < p v) && (0 < p z)
  then Num.max 0 (dp v - dp z) / ((\sum_(y | 0 < p y) 1) * p z) else 0.

Lemma flow_delta p a v : flow (fun v z => a * delta z v) p v = a * p v.
Proof.
rewrite /flow -[p v in RHS](sum_delta_point v p) mulr_sumr.
by apply: eq_bigr => z _; rewrite -mulrA.
Qed.

Lemma flow_const p f v : \sum_z p z = 1 -> flow (fun v _ => f v) p v = f v.
Proof. by move=> p1; rewrite /flow -mulr_sumr p1 mulr1. Qed.

Lemma flow_sub (Z : finType) (u u' : Z -> Z -> R) (p : Z -> R) x :
  flow (fun x z => u x z - u' x z) p x = flow u p x - flow u' p x.
Proof. by rewrite /flow -sumrB; apply: eq_bigr => z _; rewrite mulrBl. Qed.

Lemma flow_add (Z : finType) (u u' : Z -> Z -> R) (p : Z -> R) x :
  flow (fun x z => u x z + u' x z) p x = flow u p x + flow u' p x.
Proof. by rewrite /flow -big_split; apply: eq_bigr => z _; rewrite mulrDl. Qed.

Lemma flow_scale (Z : finType) a (u : Z -> Z -> R) (p : Z -> R) x :
  flow (fun x z => a * u x z) p x = a * flow u p x.
Proof. by rewrite /flow mulr_sumr; apply: eq_bigr => z _; rewrite mulrA. Qed.

(** If the columns sum to 0, a velocity that generates (p, dp) is one that satisfies the continuity
    equation dp(x) + div_x(p u) = 0. *)
Lemma continuity (Z : finType) (u : Z -> Z -> R) (p dp : Z -> R) :
  (forall z, \sum_x u x z = 0) ->
  generates u p dp <-> forall x, dp x + divergence p u x = 0.
Proof.
move=> cols; split=> gen x.
  by rewrite divergenceE // -[\sum_z _]/(flow u p x) gen subrr.
by apply/eqP; rewrite eq_sym -subr_eq0 -[flow u p x]opprK opprK -divergenceE // gen.
Qed.

Lemma sum_with_diagonal (Z : finType) (u : Z -> Z -> R) z : \sum_v with_diagonal u v z = 0.
Proof.
rewrite (bigD1 z) //= /with_diagonal eqxx addrC; apply/eqP; rewrite subr_eq0; apply/eqP.
by apply: eq_bigr => v /negPf ->.
Qed.

Lemma with_diagonal_rate (Z : finType) (u : Z -> Z -> R) :
  (forall v z, v != z -> 0 <= u v z) -> rate (with_diagonal u).
Proof.
move=> u_ge0; split=> [z|v z vz]; first exact: sum_with_diagonal.
by rewrite /with_diagonal (negPf vz) u_ge0.
Qed.

(** What a velocity with the flux F(v, z) = u(v, z) p(z) generates: Σ_z [F(v, z) − F(z, v)]. *)
Lemma flow_with_diagonal (Z : finType) (u : Z -> Z -> R) (p : Z -> R) v :
  flow (with_diagonal u) p v = \sum_z (u v z * p z - u z v * p v).
Proof.
rewrite /flow (bigD1 v) //= [in RHS](bigD1 v) //= subrr add0r /with_diagonal eqxx.
rewrite mulNr mulr_suml addrC -sumrB; apply: eq_bigr => z zv.
by rewrite eq_sym (negPf zv).
Qed.

(** V3. κ̇/(1 − κ) [δ_{x_1}(v) − δ_z(v)] generates the token of the mixture path, κ ≠ 1: the
    derivative of (1 − κ) δ_{x_0} + κ δ_{x_1} is κ̇ (δ_{x_1} − δ_{x_0}). *)
Theorem V3 (kappa dkappa : R) (x0 x1 : S) : kappa != 1 ->
  generates (mixture_velocity kappa dkappa x1) (mixture_token kappa x0 x1)
    (fun v => dkappa * (delta x1 v - delta x0 v)).
Proof.
move=> k1 v; have k1' : 1 - kappa != 0 by rewrite subr_eq0 eq_sym.
have p1 : \sum_a mixture_token kappa x0 x1 a = 1.
  by rewrite /mixture_token big_split /= -!mulr_sumr !sum_delta1 !mulr1 subrK.
rewrite /mixture_velocity flow_scale flow_sub (flow_const _ _ p1).
rewrite (_ : flow _ _ v = mixture_token kappa x0 x1 v); last first.
  rewrite -[RHS]mul1r -flow_delta; apply: eq_bigr => z _; by rewrite mul1r.
rewrite /mixture_token.
have -> : delta x1 v - ((1 - kappa) * delta x0 v + kappa * delta x1 v)
  = (1 - kappa) * (delta x1 v - delta x0 v) :> R by ring.
by rewrite mulrA divfK.
Qed.

(** V1 holds for V3's velocity if κ̇ ≥ 0 and κ < 1, and for V5's with any posterior that is a law. *)
Theorem V1 (kappa dkappa : R) (post : S -> R) : 0 <= dkappa -> kappa < 1 -> law post ->
  rate (posterior_to_velocity kappa dkappa post).
Proof.
move=> dk k1 [post_ge0 post1]; split=> [z|v z /negPf vz].
  by rewrite -mulr_sumr sumrB post1 sum_delta1 subrr mulr0.
by rewrite mulr_ge0 ?divr_ge0 ?subr_ge0 ?(ltW k1) // /delta vz.
Qed.

Theorem V1_conditional (kappa dkappa : R) (x1 : S) : 0 <= dkappa -> kappa < 1 ->
  rate (mixture_velocity kappa dkappa x1).
Proof. by move=> dk k1; apply: V1 => //; exact: delta_law. Qed.

(** V2, per token. For any b, Σ_j (κ̇^j − κ^j b) h^j(v) + b δ_z(v) generates Σ_j κ^j h^j, whose
    derivative is Σ_j κ̇^j h^j: the choice of ℓ buys V1 only. *)
Theorem V2 (J : finType) (kappa dkappa : J -> R) (h : J -> S -> R) (b : R) :
  \sum_v convex_token kappa h v = 1 ->
  generates (convex_velocity kappa dkappa h b) (convex_token kappa h)
    (fun v => \sum_j dkappa j * h j v).
Proof.
move=> p1 v; rewrite /convex_velocity flow_add (flow_const _ _ p1) flow_delta.
rewrite /convex_token mulr_sumr -big_split; apply: eq_bigr => j _ /=.
by rewrite mulrBl mulrCA -mulrA (mulrC (kappa j)) -mulrA addrNK.
Qed.

(** V2 is a rate if b = κ̇^ℓ/κ^ℓ where ℓ has the smallest κ̇^j/κ^j, that is b κ^j ≤ κ̇^j for all j,
    and the masses sum to 1 and their derivatives to 0. *)
Theorem V2_rate (J : finType) (kappa dkappa : J -> R) (h : J -> S -> R) (b : R) :
  (forall j, law (h j)) -> \sum_j kappa j = 1 -> \sum_j dkappa j = 0 ->
  (forall j, kappa j * b <= dkappa j) -> rate (convex_velocity kappa dkappa h b).
Proof.
move=> lawh k1 dk0 b_min; split=> [z|v z /negPf vz].
  rewrite big_split /= -mulr_sumr sum_delta1 mulr1 exchange_big /=.
  rewrite (eq_bigr (fun j => dkappa j - kappa j * b)) => [|j _]; last first.
    by rewrite -mulr_sumr (lawh j).2 mulr1.
  by rewrite sumrB dk0 -mulr_suml k1 mul1r add0r addNr.
rewrite /convex_velocity /delta vz mulr0 addr0; apply: sumr_ge0 => j _.
by rewrite mulr_ge0 ?subr_ge0 //; case: (lawh j).
Qed.

(** V6, per token. κ̇/κ [δ_z(v) − δ_{x_0}(v)] generates the mixture path, κ ≠ 0. *)
Theorem V6 (kappa dkappa : R) (x0 x1 : S) : kappa != 0 ->
  generates (backward_velocity kappa dkappa x0) (mixture_token kappa x0 x1)
    (fun v => dkappa * (delta x1 v - delta x0 v)).
Proof.
move=> k0 v.
have p1 : \sum_a mixture_token kappa x0 x1 a = 1.
  by rewrite /mixture_token big_split /= -!mulr_sumr !sum_delta1 !mulr1 subrK.
rewrite /backward_velocity flow_scale flow_sub (flow_const _ _ p1).
rewrite (_ : flow _ _ v = mixture_token kappa x0 x1 v); last first.
  rewrite -[RHS]mul1r -flow_delta; apply: eq_bigr => z _; by rewrite mul1r.
rewrite /mixture_token.
have -> : (1 - kappa) * delta x0 v + kappa * delta x1 v - delta x0 v
  = kappa * (delta x1 v - delta x0 v) :> R by ring.
by rewrite mulrA divfK.
Qed.

(** V6: minus it is the rate, of the process that runs with t decreasing. *)
Theorem V6_rate (kappa dkappa : R) (x0 : S) : 0 <= dkappa -> 0 < kappa ->
  rate (fun v z => - backward_velocity kappa dkappa x0 v z).
Proof.
move=> dk k0; split=> [z|v z /negPf vz].
  by rewrite sumrN -mulr_sumr sumrB !sum_delta1 subrr mulr0 oppr0.
rewrite /backward_velocity -mulrN opprB mulr_ge0 ?divr_ge0 ?(ltW k0) //.
by rewrite {2}/delta vz subr0 delta_ge0.
Qed.

(** V7. ū = α u − β ǔ for u and ǔ that generate (p, dp): α − β = 1 generates it too, and α = β
    leaves p as it is. *)
Theorem V7 (Z : finType) (u u' : Z -> Z -> R) (p dp : Z -> R) (alpha beta : R) :
  generates u p dp -> generates u' p dp ->
  generates (fun x z => alpha * u x z - beta * u' x z) p (fun x => (alpha - beta) * dp x).
Proof. by move=> gen gen' x; rewrite flow_sub !flow_scale gen gen' mulrBl. Qed.

Theorem V7_corrector (Z : finType) (u u' : Z -> Z -> R) (p dp : Z -> R) (alpha : R) :
  (forall z, \sum_x u x z = 0) -> (forall z, \sum_x u' x z = 0) ->
  generates u p dp -> generates u' p dp ->
  forall x, divergence p (fun x z => alpha * u x z - alpha * u' x z) x = 0.
Proof.
move=> cols cols' gen gen' x; rewrite divergenceE => [|z]; last first.
  by rewrite sumrB -!mulr_sumr cols cols' subrr.
by have := V7 alpha alpha gen gen' x; rewrite /flow subrr mul0r => ->; rewrite oppr0.
Qed.

Theorem V7_rate (Z : finType) (u u' : Z -> Z -> R) (alpha beta : R) :
  0 <= alpha -> 0 <= beta -> rate u -> rate (fun x z => - u' x z) ->
  rate (fun x z => alpha * u x z - beta * u' x z).
Proof.
move=> a0 b0 [cols off] [cols' off']; split=> [z|v z vz].
  have /eqP := cols' z; rewrite sumrN oppr_eq0 => /eqP cols'z.
  by rewrite sumrB -!mulr_sumr cols cols'z !mulr0 subrr.
by rewrite -mulrN addr_ge0 ?mulr_ge0 ?off ?off'.
Qed.

Lemma max0_sub (a : R) : Num.max 0 a - Num.max 0 (- a) = a.
Proof.
case: (lerP 0 a) => a0; first by rewrite (max_l _) ?oppr_le0 // subr0.
by rewrite max_r ?oppr_ge0 ?(ltW a0) // sub0r opprK.
Qed.

(** V8. [p(z) ṗ(v) − ṗ(z) p(v)]_+ / p(z) generates any differentiable law of one token, if ṗ ≥ 0
    wherever p = 0. *)
Theorem V8 (p dp : S -> R) : law p -> \sum_v dp v = 0 -> (forall v, p v = 0 -> 0 <= dp v) ->
  generates (with_diagonal (kinetic_optimal p dp)) p dp /\
  rate (with_diagonal (kinetic_optimal p dp)).
Proof.
move=> [p_ge0 p1] dp0 dp_ge0; split; last first.
  apply: with_diagonal_rate => v z _; rewrite /kinetic_optimal divr_ge0 //.
  by rewrite le_maxr lexx.
have flux v z : kinetic_optimal p dp v z * p z = Num.max 0 (p z * dp v - dp z * p v).
  have [pz0|pz0] := eqVneq (p z) 0; last by rewrite divfK.
  rewrite pz0 mulr0 mul0r sub0r max_l // oppr_le0; apply: mulr_ge0 => //; exact: dp_ge0.
move=> v; rewrite flow_with_diagonal.
rewrite (eq_bigr (fun z => p z * dp v - dp z * p v)) => [|z _]; last first.
  rewrite !flux -[RHS]max0_sub; congr (_ - Num.max 0 _).
  by rewrite opprB mulrC [X in _ - X]mulrC.
by rewrite sumrB -!mulr_suml p1 dp0 mul1r mul0r subr0.
Qed.

(** V9. Campbell's rate generates p if p = 0 implies ṗ = 0. *)
Theorem V9 (p dp : S -> R) : law p -> \sum_v dp v = 0 -> (forall v, p v = 0 -> dp v = 0) ->
  generates (with_diagonal (campbell p dp)) p dp /\ rate (with_diagonal (campbell p dp)).
Proof.
move=> [p_ge0 p1] dp0 dp_0; pose count : R := \sum_(y | 0 < p y) 1.
have p_neq0 v : p v != 0 -> 0 < p v by rewrite lt_neqAle eq_sym => ->; rewrite p_ge0.
have campbellE v z : campbell p dp v z
    = if (0 < p v) && (0 < p z) then Num.max 0 (dp v - dp z) / (count * p z) else 0.
  by [].
split; last first.
  apply: with_diagonal_rate => v z _; rewrite campbellE; case: ifP => // /andP[_ pz].
  rewrite divr_ge0 ?le_maxr ?lexx // mulr_ge0 // sumr_ge0 // => y _; exact: ler01.
move=> v; rewrite flow_with_diagonal.
have [pv0|/p_neq0 pv] := eqVneq (p v) 0.
  rewrite dp_0 // big1 // => z _; rewrite !campbellE pv0 ltxx /= andbF mul0r.
  by rewrite mul0r subr0.
have count_gt0 : 0 < count.
  rewrite /count (bigD1 v) //= ltr_paddr // ?ltr01 //.
  by apply: sumr_ge0 => y _; exact: ler01.
rewrite (eq_bigr (fun z => if 0 < p z then (dp v - dp z) / count else 0)) => [|z _]; last first.
  rewrite !campbellE pv /= andbT; case: ifP => pz; last by rewrite !mul0r subr0.
  rewrite !invfM !mulrA !divfK ?lt0r_neq0 // -mulrBl -(opprB (dp v)).
  by rewrite max0_sub.
rewrite -big_mkcond /= -mulr_suml sumrB.
have -> : \sum_(z | 0 < p z) dp z = 0.
  rewrite -[RHS]dp0 [RHS](bigID (fun z => 0 < p z)) /= [X in _ = _ + X]big1 ?addr0 // => z.
  by rewrite -leNgt => pz; apply: dp_0; apply/eqP; rewrite eq_le pz p_ge0.
have -> : \sum_(z | 0 < p z) dp v = dp v * count.
  by rewrite /count mulr_sumr; apply: eq_bigr => z _; rewrite mulr1.
by rewrite subr0 mulfK // lt0r_neq0.
Qed.

End OneToken.
