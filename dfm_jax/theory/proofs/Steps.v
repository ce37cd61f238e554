(** One step of discrete time (Q1 to Q5): product kernels, valid velocities, the exact finite step.

    I are the positions and S the states. A pair h = (x_0, x_1) has the mass π(h); κ and κ' are the
    schedules at both ends of the step, one number a position. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** At most one position has the property. *)
Definition at_most_one (I : finType) (P : pred I) : bool :=
  [forall i, [forall j, P i && P j ==> (i == j)]].

Lemma at_most_oneP (I : finType) (P : pred I) :
  reflect (forall i j, P i -> P j -> i = j) (at_most_one P).
Proof.
apply: (iffP forallP) => [one i j Pi Pj | one i].
  by have /forallP /(_ j) := one i; rewrite Pi Pj => /eqP.
by apply/forallP => j; apply/implyP => /andP [Pi Pj]; apply/eqP; exact: one.
Qed.

Section Definitions.
Variables (R : realFieldType) (I S : finType).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.

(** P4: p_t(z) = Σ_h p_t(z | h) π(h). *)
Definition path (kappa : I -> R) (pi : pairs -> R) (z : states) : R :=
  marginal (conditional_path kappa) pi z.

(** λ = (κ' − κ)/(1 − κ), and 0 where κ = 1. *)
Definition step_size (k k' : R) : R := if k == 1 then 0 else (k' - k) / (1 - k).

(** Q3 given the pair: λ [δ_y(v) − δ_z(v)], with y = x_1^i. *)
Definition conditional_velocity (k k' : R) (y v z : S) : R :=
  step_size k k' * (delta y v - delta z v).

(** p_{1|t}^i(v | z) = E[δ_{X_1^i}(v) | X_t = z]. *)
Definition data_token (kappa : I -> R) (pi : pairs -> R) (i : I) (v : S) (z : states) : R :=
  mean (conditional_path kappa) pi z (fun h => delta (h.2 i) v).

(** Q3: u^i(v, z) = λ^i [p_{1|t}^i(v | z) − δ_{z^i}(v)]. *)
Definition step_velocity (kappa kappa' : I -> R) (pi : pairs -> R) (i : I) (v : S)
    (z : states) : R :=
  step_size (kappa i) (kappa' i) * (data_token kappa pi i v z - delta (z i) v).

(** Q1: P(x, z) = Π_i (δ_{z^i} + u^i(·, z))(x^i). *)
Definition step_kernel (u : I -> S -> states -> R) (x z : states) : R :=
  product_law (fun i v => delta (z i) v + u i v z) x.

(** (P p)(x) = Σ_z P(x, z) p(z). *)
Definition push_forward (Z : finType) (P : Z -> Z -> R) (p : Z -> R) (x : Z) : R :=
  \sum_z P x z * p z.

(** Q2 at one token of state z. *)
Definition valid_token (u : S -> R) (z : S) : Prop :=
  [/\ \sum_v u v = 0, -1 <= u z <= 0 & forall v, v != z -> 0 <= u v <= 1].

(** Q2 at the state z. *)
Definition valid_velocity (u : I -> S -> states -> R) (z : states) : Prop :=
  forall i, valid_token (fun v => u i v z) (z i).

(** The position i of the pair h moves in the step from κ to κ'. *)
Definition moves (kappa kappa' : I -> R) (h : pairs) (i : I) : bool :=
  (kappa' i != kappa i) && (h.1 i != h.2 i).

(** The velocity of position i at the state z is not 0. *)
Definition moves_at (u : I -> S -> states -> R) (z : states) (i : I) : bool :=
  [exists v, u i v z != 0].

(** The law of position i alone. *)
Definition token_law (p : states -> R) (i : I) (v : S) : R :=
  \sum_(x : states) (x i == v)%:R * p x.

(** What a step asks of its schedules: 0 ≤ κ ≤ 1, and κ' = 1 where κ = 1. Every non-decreasing
    schedule with values in [0, 1] is such; κ ≤ κ' elsewhere is asked by Q2 alone. *)
Definition schedule (kappa kappa' : I -> R) : Prop :=
  (forall i, 0 <= kappa i <= 1) /\ (forall i, kappa i = 1 -> kappa' i = 1).

End Definitions.

Section Facts.
Variables (R : realFieldType) (I S : finType).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.
Implicit Types (x z : states) (h : pairs) (kappa : I -> R) (pi : pairs -> R).

Lemma schedule_of_non_decreasing kappa kappa' :
  (forall i, 0 <= kappa i) -> (forall i, kappa i <= kappa' i) -> (forall i, kappa' i <= 1) ->
  schedule kappa kappa'.
Proof.
move=> ge0 le le1; split=> i; first by rewrite ge0 (le_trans (le i)).
by move=> k1; apply/eqP; rewrite eq_le le1 -[X in X <= _]k1 le.
Qed.

Lemma mixture_token_ge0 (k : R) (y0 y1 : S) : 0 <= k <= 1 -> nonneg (mixture_token k y0 y1).
Proof.
move=> /andP [k_ge0 k_le1] v.
by rewrite /mixture_token addr_ge0 // mulr_ge0 ?subr_ge0 // delta_ge0.
Qed.

Lemma sum_mixture_token (k : R) (y0 y1 : S) : \sum_v mixture_token k y0 y1 v = 1.
Proof. by rewrite /mixture_token big_split /= -!mulr_sumr !sum_delta1 !mulr1 subrK. Qed.

Lemma mixture_token_same (k : R) (y v : S) : mixture_token k y y v = delta y v.
Proof. by rewrite /mixture_token -mulrDl subrK mul1r. Qed.

Lemma conditional_path_ge0 kappa h :
  (forall i, 0 <= kappa i <= 1) -> nonneg (conditional_path kappa h).
Proof. by move=> k01 z; apply: prodr_ge0 => i _; exact: mixture_token_ge0. Qed.

Lemma sum_conditional_path kappa h : \sum_z conditional_path kappa h z = 1.
Proof. by rewrite sum_product_law big1 // => i _; exact: sum_mixture_token. Qed.

Lemma path_ge0 kappa pi : (forall i, 0 <= kappa i <= 1) -> nonneg pi -> nonneg (path kappa pi).
Proof. by move=> k01 pi_ge0; apply: marginal_ge0 => // h; exact: conditional_path_ge0. Qed.

Lemma sum_path kappa pi : \sum_z path kappa pi z = \sum_h pi h.
Proof.
rewrite exchange_big; apply: eq_bigr => h _ /=.
by rewrite -mulr_suml sum_conditional_path mul1r.
Qed.

(** Two products of which at most one factor differs. *)
Lemma product_difference (f g : I -> R) : at_most_one (fun i => g i != f i) ->
  \prod_i g i - \prod_i f i = \sum_i (g i - f i) * \prod_(j | j != i) f j.
Proof.
move=> /at_most_oneP one; have [i gi|same] := pickP (fun i => g i != f i); last first.
  have gf i : g i = f i by apply/eqP; move: (same i) => /negbFE.
  rewrite (eq_bigr f) // subrr big1 // => i _.
  by rewrite gf subrr mul0r.
have gf j : j != i -> g j = f j.
  by move=> /eqP ji; apply/eqP/negPn/negP => /(one _ _ gi) /esym.
rewrite (bigD1 i) //= [X in _ - X](bigD1 i) //= [in RHS](bigD1 i) //= [X in _ = _ + X]big1.
  rewrite addr0 (eq_bigr f) ?mulrBl // => j; exact: gf.
by move=> j /gf ->; rewrite subrr mul0r.
Qed.

Lemma step_size_scale (k k' : R) : (k = 1 -> k' = 1) -> step_size k k' * (1 - k) = k' - k.
Proof.
rewrite /step_size; have [-> /(_ erefl) ->|k1 _] := eqVneq k 1; first by rewrite !subrr mul0r.
by rewrite mulfVK // subr_eq0 eq_sym.
Qed.

(** The law of a token changes by p' − p in the step: the inflow of Q3. *)
Lemma conditional_drift (k k' : R) (y0 y1 v : S) : (k = 1 -> k' = 1) ->
  \sum_z conditional_velocity k k' y1 v z * mixture_token k y0 y1 z =
  mixture_token k' y0 y1 v - mixture_token k y0 y1 v.
Proof.
move=> end1; rewrite /conditional_velocity.
under eq_bigr do rewrite -mulrA mulrBl; rewrite -mulr_sumr sumrB -mulr_sumr.
rewrite sum_mixture_token (sum_delta_point v (mixture_token k y0 y1)).
have -> : delta y1 v * 1 - mixture_token k y0 y1 v = (1 - k) * (delta y1 v - delta y0 v) :> R.
  by rewrite /mixture_token; ring.
by rewrite mulrA step_size_scale // /mixture_token; ring.
Qed.

Lemma step_velocityE kappa kappa' pi i v z : (forall i, 0 <= kappa i <= 1) -> nonneg pi ->
  path kappa pi z * step_velocity kappa kappa' pi i v z =
  \sum_h conditional_path kappa h z * pi h *
    conditional_velocity (kappa i) (kappa' i) (h.2 i) v (z i).
Proof.
move=> k01 pi_ge0; have c_ge0 h : nonneg (conditional_path kappa h).
  exact: conditional_path_ge0.
rewrite /step_velocity mulrCA mulrBr meanE // /path /marginal mulr_suml -sumrB mulr_sumr.
by apply: eq_bigr => h _; rewrite /conditional_velocity -mulrBr mulrCA.
Qed.

Lemma product_law_put (p : I -> S -> R) i z v :
  product_law p (put z i v) = p i v * \prod_(j | j != i) p j (z j).
Proof.
rewrite /product_law (bigD1 i) //= ffunE eqxx; congr (_ * _).
by apply: eq_bigr => j /negPf ji; rewrite ffunE ji.
Qed.

(** Σ_z u(x, z) p(z) for the full field of Q3, a sum over pairs and positions. *)
Lemma step_inflow kappa kappa' pi x : schedule kappa kappa' -> nonneg pi ->
  \sum_z full_field (step_velocity kappa kappa' pi) x z * path kappa pi z =
  \sum_h pi h * \sum_i (mixture_token (kappa' i) (h.1 i) (h.2 i) (x i)
                       - mixture_token (kappa i) (h.1 i) (h.2 i) (x i)) *
    \prod_(j | j != i) mixture_token (kappa j) (h.1 j) (h.2 j) (x j).
Proof.
move=> [k01 end1] pi_ge0; rewrite /full_field.
under eq_bigr do rewrite mulr_suml; rewrite exchange_big /=.
under [RHS]eq_bigr do rewrite mulr_sumr; rewrite [RHS]exchange_big /=.
apply: eq_bigr => i _.
under eq_bigr => z _.
  rewrite -mulrA [X in _ * X]mulrC step_velocityE // mulr_sumr.
  over.
rewrite exchange_big /=; apply: eq_bigr => h _.
under eq_bigr => z _ do rewrite agree_off_sym.
rewrite (sum_agree_off i x (fun z => conditional_path kappa h z * pi h *
   conditional_velocity (kappa i) (kappa' i) (h.2 i) (x i) (z i))).
rewrite -conditional_drift; last exact: end1.
rewrite mulr_suml mulr_sumr; apply: eq_bigr => v _.
by rewrite /conditional_path product_law_put ffunE eqxx -[LHS]mulrA [LHS]mulrC -!mulrA.
Qed.

(** Outside the support of p the field is free: both terms of the divergence bear a factor p. *)
Lemma divergence_on_support (Z : finType) (p : Z -> R) (u : Z -> Z -> R) (x : Z) :
  (forall z : Z, p z != 0 -> \sum_y u y z = 0) -> divergence p u x = - \sum_z u x z * p z.
Proof.
move=> rate; pose w (y z : Z) := if p z == 0 then 0 else u y z.
have pw (y z : Z) : p z * u y z = p z * w y z.
  by rewrite /w; case: eqP => // ->; rewrite !mul0r.
transitivity (divergence p w x).
  by apply: eq_bigr => z _; rewrite !pw.
rewrite divergenceE; last first.
  move=> z; rewrite /w; have [p0|p_neq0] := eqVneq (p z) 0; first by rewrite big1.
  exact: rate.
by congr (- _); apply: eq_bigr => z _; rewrite mulrC -pw mulrC.
Qed.

(** Σ_v p_{1|t}^i(v | z) = 1 on the support. *)
Lemma data_token_law kappa pi i z : (forall i, 0 <= kappa i <= 1) -> nonneg pi ->
  0 < path kappa pi z -> law (fun v => data_token kappa pi i v z).
Proof.
move=> k01 pi_ge0 p_gt0; split=> [v|].
  apply: sumr_ge0 => h _; rewrite mulr_ge0 ?delta_ge0 // divr_ge0 ?(ltW p_gt0) //.
  by rewrite mulr_ge0 // conditional_path_ge0.
rewrite /data_token /mean exchange_big /= -[RHS](sum_posterior p_gt0).
by apply: eq_bigr => h _; rewrite -mulr_sumr sum_delta1 mulr1.
Qed.

Lemma step_velocity_rate kappa kappa' pi i z : (forall i, 0 <= kappa i <= 1) -> nonneg pi ->
  0 < path kappa pi z -> \sum_v step_velocity kappa kappa' pi i v z = 0.
Proof.
move=> k01 pi_ge0 p_gt0; have [_ sum1] := data_token_law i k01 pi_ge0 p_gt0.
by rewrite -mulr_sumr sumrB sum1 sum_delta1 subrr mulr0.
Qed.

Lemma prod_indicator (P b : pred I) :
  \prod_(i | P i) (b i)%:R = [forall (i | P i), b i]%:R :> R.
Proof.
case: forallP => [all|/forallP].
  by rewrite big1 // => i Pi; have := all i; rewrite Pi /= => ->.
rewrite negb_forall => /existsP [i]; rewrite negb_imply => /andP [Pi /negPf bi].
by rewrite (bigD1 i) //= bi mul0r.
Qed.

Lemma delta_all (z x : states) : \prod_i delta (z i) (x i) = delta z x :> R.
Proof.
rewrite /delta (prod_indicator predT (fun i => x i == z i)); congr (_ %:R); congr nat_of_bool.
by apply/forallP/eqP => [all|-> i]; [apply/ffunP => i; apply/eqP; have := all i | rewrite eqxx].
Qed.

Lemma delta_agree_off (z x : states) i :
  \prod_(j | j != i) delta (z j) (x j) = (agree_off i x z)%:R :> R.
Proof. by rewrite /delta (prod_indicator (fun j => j != i) (fun j => x j == z j)). Qed.

(** Where one position moves, the product kernel is the full field. *)
Lemma step_kernel_one (u : I -> S -> states -> R) x z : at_most_one (moves_at u z) ->
  step_kernel u x z = delta z x + full_field u x z.
Proof.
move=> /at_most_oneP one.
have /product_difference : at_most_one (fun i => delta (z i) (x i) + u i (x i) z
                                                 != delta (z i) (x i) :> R).
  apply/at_most_oneP => i j; have moved l : delta (z l) (x l) + u l (x l) z
      != delta (z l) (x l) -> moves_at u z l.
    move=> neq; apply/existsP; exists (x l); apply: contraNneq neq => ->.
    by rewrite addr0.
  by move=> /moved mi /moved; exact: one.
rewrite delta_all => /eqP; rewrite subr_eq addrC /step_kernel /product_law => /eqP ->.
congr (_ + _).
by apply: eq_bigr => i _; rewrite delta_agree_off mulrC addrAC subrr add0r.
Qed.

Lemma push_forward_one (u : I -> S -> states -> R) (p : states -> R) x :
  (forall z, p z != 0 -> at_most_one (moves_at u z)) ->
  push_forward (step_kernel u) p x = p x + \sum_z full_field u x z * p z.
Proof.
move=> one; rewrite -[X in X + _](sum_delta_point x p) -big_split; apply: eq_bigr => z _ /=.
have [->|p_neq0] := eqVneq (p z) 0; first by rewrite !mulr0 addr0.
by rewrite step_kernel_one ?mulrDl // one.
Qed.

(** The law of one position of a product whose other factors sum to 1. *)
Lemma token_law_product (p : I -> S -> R) i v : (forall j, \sum_w p j w = 1) ->
  token_law (product_law p) i v = p i v.
Proof.
move=> sum1; pose q j w := if j == i then (w == v)%:R * p j w else p j w.
transitivity (\sum_(x : states) product_law q x).
  apply: eq_bigr => x _; rewrite /product_law (bigD1 i) //= [RHS](bigD1 i) //= /q eqxx mulrA.
  by congr (_ * _); apply: eq_bigr => j /negPf ->.
rewrite sum_product_law (bigD1 i) //= /q eqxx (sum_delta v) big1 ?mulr1 // => j /negPf ->.
exact: sum1.
Qed.

(** The marginal and the mean under finitely many pairs of masses w. *)
Lemma marginal_points (H Z K : finType) (c : H -> Z -> R) (w : K -> R) (f : K -> H) (y : Z) :
  marginal c (fun a => \sum_k w k * delta (f k) a) y = \sum_k w k * c (f k) y.
Proof.
rewrite /marginal; under eq_bigr do rewrite mulr_sumr.
rewrite exchange_big; apply: eq_bigr => k _ /=.
by rewrite -(sum_delta (f k) (c^~ y)) mulr_sumr; apply: eq_bigr => a _; rewrite mulrC mulrA.
Qed.

Lemma mean_as_marginal (H Z : finType) (c : H -> Z -> R) (m : H -> R) (y : Z) (g : H -> R) :
  mean c m y g = marginal (fun a b => c a b * g a) m y / marginal c m y.
Proof. by rewrite /mean mulr_suml; apply: eq_bigr => a _; rewrite mulrAC (mulrAC (c a y)). Qed.

(** A position that no pair of positive mass moves has no velocity. *)
Lemma step_velocity_still kappa kappa' pi i v z : nonneg pi -> 0 < path kappa pi z ->
  (forall h, 0 < pi h -> ~~ moves kappa kappa' h i) -> step_velocity kappa kappa' pi i v z = 0.
Proof.
move=> pi_ge0 p_gt0 still.
have <- : mean (conditional_path kappa) pi z
    (fun h => conditional_velocity (kappa i) (kappa' i) (h.2 i) v (z i)) =
  step_velocity kappa kappa' pi i v z by rewrite mean_scale mean_sub mean_const.
rewrite /mean big1 // => h _.
have [c0|c_neq0] := eqVneq (conditional_path kappa h z * pi h) 0.
  by rewrite /posterior c0 !mul0r.
have /still : 0 < pi h.
  by rewrite lt0r pi_ge0 andbT; apply: contraNneq c_neq0 => ->; rewrite mulr0.
rewrite negb_and !negbK => /orP [/eqP k_eq|/eqP h_eq].
  by rewrite /conditional_velocity /step_size k_eq subrr mul0r if_same mul0r mulr0.
have -> : z i = h.2 i.
  apply/eqP; apply: contraNT c_neq0 => zi; rewrite /conditional_path /product_law (bigD1 i) //=.
  by rewrite h_eq mixture_token_same /delta (negPf zi) !mul0r.
by rewrite /conditional_velocity subrr !mulr0.
Qed.

End Facts.

Section Theorems.
Variables (R : realFieldType) (I S : finType).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.
Implicit Types (x z : states) (h : pairs) (kappa : I -> R) (pi : pairs -> R).

(** Q2 for one token, with the fewest inequalities: the others follow. *)
Theorem Q2_iff_law (u : S -> R) (z : S) :
  valid_token u z <-> law (fun v => delta z v + u v).
Proof.
split=> [[sum0 /andP [self_ge _] other]|[ge0 sum1]].
  split=> [v|]; last by rewrite big_split /= sum_delta1 sum0 addr0.
  rewrite /delta; have [->|vz] := eqVneq v z; first by rewrite -ler_subl_addl sub0r.
  by rewrite add0r; have /andP [] := other _ vz.
have sum0 : \sum_v u v = 0.
  by move: sum1; rewrite big_split /= sum_delta1 => /eqP; rewrite -subr_eq0 addrC addKr => /eqP.
have other v : v != z -> 0 <= u v.
  by move=> /negPf vz; have := ge0 v; rewrite /delta vz add0r.
have self : -1 <= u z by have := ge0 z; rewrite /delta eqxx -ler_subl_addl sub0r.
have self_eq : u z = - \sum_(v | v != z) u v.
  by move: sum0; rewrite (bigD1 z) //= => /eqP; rewrite addr_eq0 => /eqP.
split=> //; first by rewrite self self_eq oppr_le0 sumr_ge0.
move=> v vz; rewrite other //=.
rewrite -(ler_add2l (- 1)) addNr; apply: (le_trans (y := u z + u v)); first by rewrite ler_add2r.
rewrite self_eq (bigD1 v) //= opprD addrAC addNr add0r oppr_le0.
by apply: sumr_ge0 => y /andP [yz _]; exact: other.
Qed.

(** Q1: X_{t+1}^i ~ δ_{X_t^i} + u^i(·, X_t), independently over i given X_t: the kernel P(·, z) is
    a law over the next state if the velocity is valid (Q2) at z. *)
Theorem Q1 (u : I -> S -> states -> R) z :
  valid_velocity u z -> law (fun x => step_kernel u x z).
Proof.
move=> valid; have token i : law (fun v => delta (z i) v + u i v z) by apply/Q2_iff_law.
split=> [x|]; first by apply: prodr_ge0 => i _; have [ge0 _] := token i.
by rewrite sum_product_law big1 // => i _; have [_ sum1] := token i.
Qed.

(** Q2: Σ_v u(v) = 0; −1 ≤ u(z) ≤ 0; 0 ≤ u(v) ≤ 1 for v ≠ z: so for u = λ (p − δ_z) with a law p
    and 0 ≤ λ ≤ 1. *)
Theorem Q2 (l : R) (p : S -> R) (z : S) : 0 <= l <= 1 -> law p ->
  valid_token (fun v => l * (p v - delta z v)) z.
Proof.
move=> /andP [l_ge0 l_le1] [p_ge0 sum1]; apply/Q2_iff_law; split=> [v|].
  have -> : delta z v + l * (p v - delta z v) = (1 - l) * delta z v + l * p v by ring.
  by rewrite addr_ge0 // mulr_ge0 ?delta_ge0 // subr_ge0.
by rewrite big_split /= -mulr_sumr sumrB sum1 sum_delta1 subrr mulr0 addr0.
Qed.

(** Q2: the λ of Q3 lies in [0, 1] if κ ≤ κ' ≤ 1. *)
Theorem Q2_step_size (k k' : R) : k <= k' -> k' <= 1 -> 0 <= step_size k k' <= 1.
Proof.
move=> le le1; rewrite /step_size; have [_|k1] := eqVneq k 1; first by rewrite lexx ler01.
have k_lt1 : k < 1 by rewrite lt_neqAle k1 (le_trans le).
rewrite divr_ge0 ?subr_ge0 //=; last exact: ltW.
by rewrite ler_pdivr_mulr ?subr_gt0 // mul1r ler_add2r.
Qed.

(** Q2: the velocity of Q3 is valid at every z with p_t(z) > 0, for 0 ≤ κ ≤ κ' ≤ 1. *)
Theorem Q2_step_velocity kappa kappa' pi z :
  (forall i, 0 <= kappa i) -> (forall i, kappa i <= kappa' i) -> (forall i, kappa' i <= 1) ->
  nonneg pi -> 0 < path kappa pi z -> valid_velocity (step_velocity kappa kappa' pi) z.
Proof.
move=> ge0 le le1 pi_ge0 p_gt0 i; apply: Q2; first exact: Q2_step_size.
by apply: data_token_law => // j; rewrite ge0 (le_trans (le j)).
Qed.

(** Q3: given the pair, u(v, z) = λ [δ_{x_1^i}(v) − δ_z(v)], λ = (κ' − κ)/(1 − κ), is the exact
    finite step: Σ_z (δ_z + u(·, z))(v) p_t(z) = p_{t+1}(v). All it needs is κ' = 1 where κ = 1;
    neither the signs of the masses nor κ ≤ κ' enters. *)
Theorem Q3 (k k' : R) (y0 y1 v : S) : (k = 1 -> k' = 1) ->
  \sum_z (delta z v + conditional_velocity k k' y1 v z) * mixture_token k y0 y1 z =
  mixture_token k' y0 y1 v.
Proof.
move=> end1; under eq_bigr do rewrite mulrDl.
by rewrite big_split /= sum_delta_point conditional_drift // addrC subrK.
Qed.

(** Q3: its mean over the pairs given z is λ^i [p_{1|t}^i(v | z) − δ_{z^i}(v)], where
    p_t(z) > 0. *)
Theorem Q3_marginal kappa kappa' pi i v z : 0 < path kappa pi z ->
  mean (conditional_path kappa) pi z
    (fun h => conditional_velocity (kappa i) (kappa' i) (h.2 i) v (z i)) =
  step_velocity kappa kappa' pi i v z.
Proof. by move=> p_gt0; rewrite mean_scale mean_sub mean_const. Qed.

(** What a pair adds to p_{t+1}(x) − p_t(x) + div_x(p_t u), a unit of mass: the change of the
    product minus the changes of one factor at a time. *)
Definition joint_change kappa kappa' h x : R :=
  \prod_i mixture_token (kappa' i) (h.1 i) (h.2 i) (x i)
  - \prod_i mixture_token (kappa i) (h.1 i) (h.2 i) (x i)
  - \sum_i (mixture_token (kappa' i) (h.1 i) (h.2 i) (x i)
            - mixture_token (kappa i) (h.1 i) (h.2 i) (x i)) *
      \prod_(j | j != i) mixture_token (kappa j) (h.1 j) (h.2 j) (x j).

(** Q4 without its condition: the residual is Σ_h π(h) joint_change(h, x), whatever moves. *)
Theorem Q4_residual kappa kappa' pi x : schedule kappa kappa' -> nonneg pi ->
  path kappa' pi x - path kappa pi x
    + divergence (path kappa pi) (full_field (step_velocity kappa kappa' pi)) x =
  \sum_h pi h * joint_change kappa kappa' h x.
Proof.
move=> sched pi_ge0; have [k01 _] := sched.
rewrite divergence_on_support; last first.
  move=> z p_neq0; apply: full_field_rate => i; apply: step_velocity_rate => //.
  by rewrite lt0r p_neq0 path_ge0.
rewrite step_inflow // /path /marginal -sumrB -sumrB; apply: eq_bigr => h _.
by rewrite /joint_change mulrBr mulrBr (mulrC _ (pi h)) (mulrC _ (pi h)).
Qed.

(** Q4: p_{t+1}(x) − p_t(x) + div_x(p_t u) = 0 for the velocity u of Q3, if for every pair of
    positive mass at most one position has κ' ≠ κ and x_0^i ≠ x_1^i. Any source and any coupling of
    masses that are not negative, of any sum; 0 ≤ κ ≤ 1, and κ' = 1 where κ = 1. *)
Theorem Q4 kappa kappa' pi x : schedule kappa kappa' -> nonneg pi ->
  (forall h, 0 < pi h -> at_most_one (moves kappa kappa' h)) ->
  path kappa' pi x - path kappa pi x
    + divergence (path kappa pi) (full_field (step_velocity kappa kappa' pi)) x = 0.
Proof.
move=> sched pi_ge0 one; rewrite Q4_residual // big1 // => h _.
have [->|pi_neq0] := eqVneq (pi h) 0; first by rewrite mul0r.
have /one /at_most_oneP mv : 0 < pi h by rewrite lt0r pi_neq0 pi_ge0.
rewrite /joint_change product_difference ?subrr ?mulr0 //; apply/at_most_oneP => i j.
have moved l : mixture_token (kappa' l) (h.1 l) (h.2 l) (x l)
    != mixture_token (kappa l) (h.1 l) (h.2 l) (x l) -> moves kappa kappa' h l.
  move=> neq; rewrite /moves; apply/andP; split; apply: contraNneq neq => ->; apply/eqP => //.
  by rewrite !mixture_token_same.
by move=> /moved mi /moved; exact: mv.
Qed.

(** A product of sums without its terms of order 0 and 1. *)
Lemma product_expansion (m d : I -> R) :
  \prod_i (m i + d i) - \prod_i m i - \sum_i d i * \prod_(j | j != i) m j =
  \sum_(J : {set I} | (1 < #|J|)%N) \prod_i (if i \in J then d i else m i).
Proof.
have -> : \prod_i (m i + d i) = \sum_(J : {set I}) \prod_i (if i \in J then d i else m i).
  transitivity (\prod_i \sum_(b : bool) if b then d i else m i).
    by apply: eq_bigr => i _; rewrite big_bool addrC.
  rewrite bigA_distr_bigA (reindex (fun J : {set I} => [ffun i => i \in J])) /=.
    by apply: eq_bigr => J _; apply: eq_bigr => i _; rewrite ffunE.
  exists (fun f => [set i | f i]) => [J|f] _; first by apply/setP => i; rewrite inE ffunE.
  by apply/ffunP => i; rewrite ffunE inE.
have low : \sum_(J : {set I} | ~~ (1 < #|J|)%N) \prod_i (if i \in J then d i else m i) =
    \prod_i m i + \sum_i d i * \prod_(j | j != i) m j.
  rewrite (bigD1 (set0 : {set I})) ?cards0 //=; congr (_ + _).
    by apply: eq_bigr => i _; rewrite inE.
  transitivity (\sum_(J in (fun i => [set i]) @: I)
      \prod_i (if i \in (J : {set I}) then d i else m i)).
    apply: eq_bigl => J; apply/idP/imsetP => [|[i _ ->]]; last first.
      by rewrite cards1 /= -card_gt0 cards1.
    rewrite -card_gt0 -leqNgt => /andP [le gt]; have /cards1P [i ->] : #|J| == 1%N.
      by rewrite eqn_leq le.
    by exists i.
  rewrite big_imset /=; last by move=> i j _ _; exact: set1_inj.
  apply: eq_bigr => i _; rewrite (bigD1 i) //= inE eqxx; congr (_ * _).
  by apply: eq_bigr => j /negPf ji; rewrite inE ji.
by rewrite (bigID (fun J : {set I} => (1 < #|J|)%N)) /= low -addrA -opprD addrK.
Qed.

(** The condition of Q4 is necessary for a fixed source sequence s, as all masks outside a context
    (the positions where the data show s themselves): if κ ≤ κ' and the residual is 0 at every x, at
    most one position moves for every pair of positive mass. *)
Theorem Q4_necessary (s : states) (ctx : pred I) kappa kappa' pi :
  schedule kappa kappa' -> (forall i, kappa i <= kappa' i) -> nonneg pi ->
  (forall h, 0 < pi h -> h.1 = s) ->
  (forall h i, 0 < pi h -> (h.2 i == s i) = ctx i) ->
  (forall x, path kappa' pi x - path kappa pi x
    + divergence (path kappa pi) (full_field (step_velocity kappa kappa' pi)) x = 0) ->
  forall h, 0 < pi h -> at_most_one (moves kappa kappa' h).
Proof.
move=> sched le pi_ge0 source context residual0 h pi_gt0; have [k01 end1] := sched.
have h1 := source h pi_gt0; apply/negPn/negP => two.
have [i [j [mi mj ij]]] : exists i j, [/\ moves kappa kappa' h i, moves kappa kappa' h j & i != j].
  move: two; rewrite negb_forall => /existsP [i]; rewrite negb_forall => /existsP [j].
  by rewrite negb_imply => /andP [/andP [mi mj] ij]; exists i, j.
pose x : states := [ffun l => if ~~ moves kappa kappa' h l && (kappa l == 0) then s l else h.2 l].
pose token k (g : pairs) l := mixture_token (k l) (g.1 l) (g.2 l) (x l) : R.
pose d (g : pairs) l := token kappa' g l - token kappa g l.
have dE g l : 0 < pi g -> d g l = if moves kappa kappa' h l
    then (kappa' l - kappa l) * delta (g.2 l) (x l) else 0.
  move=> g_gt0; rewrite /d /token (source g g_gt0) /mixture_token ffunE.
  have [/andP [k_neq h_neq]|] /= := boolP (moves kappa kappa' h l).
    have -> : delta (s l) (h.2 l) = 0 :> R by rewrite /delta -h1 eq_sym (negPf h_neq).
    by rewrite !mulr0 !add0r mulrBl.
  rewrite negb_and !negbK => /orP [/eqP -> |/eqP h_eq]; first by rewrite subrr.
  have /eqP -> : g.2 l == s l by rewrite context // -(context h l pi_gt0) -h1 h_eq.
  by rewrite -!mulrDl !subrK subrr.
have d_ge0 g l : 0 < pi g -> 0 <= d g l.
  by move=> /dE ->; case: ifP => // _; rewrite mulr_ge0 ?delta_ge0 // subr_ge0.
have token_ge0 g l : 0 <= token kappa g l by apply: mixture_token_ge0.
have changeE g : joint_change kappa kappa' g x = \sum_(J : {set I} | (1 < #|J|)%N)
    \prod_l (if l \in J then d g l else token kappa g l).
  rewrite -product_expansion /joint_change; congr (_ - _ - _).
  by apply: eq_bigr => l _; rewrite /d addrC subrK.
have change_ge0 g : 0 <= pi g * joint_change kappa kappa' g x.
  have [->|g_neq0] := eqVneq (pi g) 0; first by rewrite mul0r.
  have g_gt0 : 0 < pi g by rewrite lt0r g_neq0 pi_ge0.
  rewrite mulr_ge0 // changeE; apply: sumr_ge0 => J _; apply: prodr_ge0 => l _.
  by case: ifP => _; rewrite ?d_ge0.
have : 0 < \sum_g pi g * joint_change kappa kappa' g x.
  apply: (lt_le_trans (y := pi h * joint_change kappa kappa' h x)); last first.
    exact: (sum_ge_term (f := fun g => pi g * joint_change kappa kappa' g x)).
  rewrite mulr_gt0 // changeE (bigD1 [set l | moves kappa kappa' h l]) /=; last first.
    have <- : #|[set i; j]| = 2%N by rewrite cards2 ij.
    by apply: subset_leq_card; apply/subsetP => l; rewrite !inE => /orP [] /eqP ->.
  rewrite ltr_paddr //.
    apply: sumr_ge0 => J _; apply: prodr_ge0 => l _.
    by case: ifP => _; rewrite ?d_ge0.
  apply: prodr_gt0 => l _; rewrite inE; case: ifP => ml.
    rewrite dE // ml ffunE ml /= /delta eqxx mulr1 subr_gt0 lt_neqAle le andbT.
    by have /andP [k_neq _] := ml; rewrite eq_sym.
  rewrite /token /mixture_token ffunE ml /= h1; case: eqP => [->|/eqP k_neq0].
    by rewrite mul0r addr0 subr0 mul1r /delta eqxx ltr01.
  have /andP [k_ge0 k_le1] := k01 l.
  rewrite ltr_paddl ?mulr_ge0 ?delta_ge0 ?subr_ge0 // /delta eqxx mulr1.
  by rewrite lt0r k_neq0.
by rewrite -Q4_residual // residual0 ltxx.
Qed.

(** The velocity of Q3 of every position, given the pair. *)
Definition pair_velocity kappa kappa' h (i : I) (v : S) z : R :=
  conditional_velocity (kappa i) (kappa' i) (h.2 i) v (z i).

(** Q3 given the pair, all positions at once: the product kernel carries p_t(· | x_0, x_1) to
    p_{t+1}(· | x_0, x_1), however many positions move. *)
Theorem Q3_joint kappa kappa' h x : (forall i, kappa i = 1 -> kappa' i = 1) ->
  push_forward (step_kernel (pair_velocity kappa kappa' h)) (conditional_path kappa h) x =
  conditional_path kappa' h x.
Proof.
move=> end1; rewrite /conditional_path /product_law.
under [RHS]eq_bigr => i _ do rewrite -(Q3 _ _ _ (end1 i)); rewrite bigA_distr_bigA.
by apply: eq_bigr => z _; rewrite big_split.
Qed.

(** Q3, the marginal step: each token's law is exact after one step, whatever else moves. *)
Theorem Q3_tokens kappa kappa' pi i v : schedule kappa kappa' -> nonneg pi ->
  token_law (push_forward (step_kernel (step_velocity kappa kappa' pi)) (path kappa pi)) i v =
  token_law (path kappa' pi) i v.
Proof.
move=> sched pi_ge0; have [k01 end1] := sched; set u := step_velocity _ _ _.
transitivity (\sum_(z : states) (delta (z i) v + u i v z) * path kappa pi z).
  rewrite /token_law; under eq_bigr do rewrite mulr_sumr.
  rewrite exchange_big; apply: eq_bigr => z _ /=; under eq_bigr do rewrite mulrA.
  rewrite -mulr_suml; have [->|p_neq0] := eqVneq (path kappa pi z) 0; first by rewrite !mulr0.
  congr (_ * _); apply: (token_law_product (p := fun j w => delta (z j) w + u j w z)) => j.
  by rewrite big_split /= sum_delta1 step_velocity_rate ?addr0 // lt0r p_neq0 path_ge0.
transitivity (\sum_h pi h * mixture_token (kappa' i) (h.1 i) (h.2 i) v); last first.
  rewrite /token_law; under [RHS]eq_bigr do rewrite mulr_sumr.
  rewrite [RHS]exchange_big; apply: eq_bigr => h _ /=; under [RHS]eq_bigr do rewrite mulrA.
  rewrite -mulr_suml mulrC; congr (_ * _).
  rewrite -(token_law_product (p := fun j => mixture_token (kappa' j) (h.1 j) (h.2 j))) // => j.
  exact: sum_mixture_token.
transitivity (\sum_(z : states) \sum_h pi h * (conditional_path kappa h z *
    (delta (z i) v + conditional_velocity (kappa i) (kappa' i) (h.2 i) v (z i)))).
  apply: eq_bigr => z _; rewrite mulrDl mulrC [X in _ + X]mulrC step_velocityE //.
  rewrite /path /marginal mulr_suml -big_split; apply: eq_bigr => h _ /=.
  by rewrite -mulrDr mulrAC mulrC mulrA.
rewrite exchange_big; apply: eq_bigr => h _ /=; rewrite -mulr_sumr; congr (_ * _).
rewrite -(Q3 (h.1 i) (h.2 i) v (end1 i)).
pose f w : R := delta w v + conditional_velocity (kappa i) (kappa' i) (h.2 i) v w.
transitivity (\sum_w \sum_(z : states) (z i == w)%:R * conditional_path kappa h z * f w).
  rewrite exchange_big; apply: eq_bigr => z _ /=; rewrite (bigD1 (z i)) //= eqxx mul1r.
  by rewrite big1 ?addr0 // => w; rewrite eq_sym => /negPf ->; rewrite !mul0r.
apply: eq_bigr => w _; rewrite -mulr_suml mulrC; congr (_ * _).
apply: (token_law_product (p := fun j => mixture_token (kappa j) (h.1 j) (h.2 j))) => j.
exact: sum_mixture_token.
Qed.

(** Q5 for any laws and any velocity: if p' − p + div(p u) = 0, the columns of u sum to 0 and at
    most one position moves at every z of p(z) ≠ 0, then p' = P p. *)
Theorem Q5_from_continuity (p p' : states -> R) (u : I -> S -> states -> R) x :
  (forall z i, p z != 0 -> \sum_v u i v z = 0) ->
  (forall z, p z != 0 -> at_most_one (moves_at u z)) ->
  p' x - p x + divergence p (full_field u) x = 0 ->
  p' x = push_forward (step_kernel u) p x.
Proof.
move=> rate one; rewrite divergence_on_support; last first.
  by move=> z p_neq0; apply: full_field_rate => i; exact: rate.
move=> /eqP; rewrite subr_eq0 subr_eq => /eqP ->.
by rewrite push_forward_one // addrC.
Qed.

(** The condition of Q5 implies the condition of Q4: of two positions that a pair of positive mass
    moves, both have a velocity at the state that shows x_1 where κ = 1 and x_0 elsewhere. *)
Theorem Q5_condition_gives_Q4 kappa kappa' pi : schedule kappa kappa' -> nonneg pi ->
  (forall z, 0 < path kappa pi z -> at_most_one (moves_at (step_velocity kappa kappa' pi) z)) ->
  forall h, 0 < pi h -> at_most_one (moves kappa kappa' h).
Proof.
move=> [k01 end1] pi_ge0 one h pi_gt0.
pose z : states := [ffun i => if kappa i == 1 then h.2 i else h.1 i].
have c_gt0 : 0 < conditional_path kappa h z.
  apply: prodr_gt0 => i _; rewrite ffunE /mixture_token; case: eqP => [->|/eqP k_neq1].
    by rewrite subrr mul0r add0r mul1r /delta eqxx ltr01.
  have /andP [k_ge0 k_le1] := k01 i.
  have k_lt1 : 0 < 1 - kappa i by rewrite subr_gt0 lt_neqAle k_neq1.
  by rewrite ltr_paddr ?mulr_ge0 ?delta_ge0 // /delta eqxx mulr1.
have term_ge0 g : 0 <= conditional_path kappa g z * pi g.
  by rewrite mulr_ge0 // conditional_path_ge0.
have p_gt0 : 0 < path kappa pi z.
  apply: (lt_le_trans (mulr_gt0 c_gt0 pi_gt0)).
  exact: (sum_ge_term (f := fun g => conditional_path kappa g z * pi g)).
have moved i : moves kappa kappa' h i -> moves_at (step_velocity kappa kappa' pi) z i.
  move=> /andP [k_neq h_neq]; apply/existsP; exists (z i).
  have k_neq1 : kappa i != 1 by apply: contraNneq k_neq => k1; rewrite k1 end1.
  have zi : z i = h.1 i by rewrite ffunE (negPf k_neq1).
  rewrite /step_velocity mulf_neq0 //.
    by rewrite /step_size (negPf k_neq1) mulf_neq0 ?invr_neq0 // subr_eq0 // eq_sym.
  rewrite subr_eq0 [delta _ _]/delta eqxx; apply/eqP => token1.
  have rest0 : \sum_g posterior (conditional_path kappa) pi z g * (1 - delta (g.2 i) (z i)) = 0.
    under eq_bigr do rewrite mulrBr mulr1; rewrite sumrB sum_posterior //.
    by move: token1; rewrite /data_token /mean => ->; rewrite subrr.
  have: posterior (conditional_path kappa) pi z h * (1 - delta (h.2 i) (z i)) = 0.
    move: (h); apply: sum_nonneg_eq0 rest0 => g.
    rewrite mulr_ge0 ?divr_ge0 ?(ltW p_gt0) // subr_ge0 /delta; case: eqP => _ //.
    by rewrite ler01.
  move/eqP; rewrite /delta zi (negPf h_neq) subr0 mulr1 gt_eqF //.
  by rewrite divr_gt0 // mulr_gt0.
apply/at_most_oneP => i j /moved mi /moved; move: mi.
exact: (at_most_oneP _ (one z p_gt0)).
Qed.

(** Q5: p_{t+1} = P p_t with P(x, z) = Π_i (δ_{z^i} + u^i(·, z))(x^i) and the velocity of Q3, if at
    every z with p_t(z) > 0 at most one position has u^i(·, z) ≠ 0. Any source and coupling; the
    schedule has 0 ≤ κ ≤ 1, and κ' = 1 where κ = 1. *)
Theorem Q5 kappa kappa' pi x : schedule kappa kappa' -> nonneg pi ->
  (forall z, 0 < path kappa pi z -> at_most_one (moves_at (step_velocity kappa kappa' pi) z)) ->
  path kappa' pi x = push_forward (step_kernel (step_velocity kappa kappa' pi)) (path kappa pi) x.
Proof.
move=> sched pi_ge0 one; have [k01 _] := sched.
have gt0 z : path kappa pi z != 0 -> 0 < path kappa pi z by rewrite lt0r path_ge0 // andbT.
apply: (Q5_from_continuity (p' := path kappa' pi)) => [z i /gt0|z /gt0|].
- exact: step_velocity_rate.
- exact: one.
- by apply: Q4 => //; exact: Q5_condition_gives_Q4.
Qed.

(** The condition of Q5 holds if one and the same position moves for every pair of positive mass. *)
Theorem Q5_one_moving_position kappa kappa' pi i0 :
  schedule kappa kappa' -> nonneg pi ->
  (forall h i, 0 < pi h -> moves kappa kappa' h i -> i = i0) ->
  forall z, 0 < path kappa pi z -> at_most_one (moves_at (step_velocity kappa kappa' pi) z).
Proof.
move=> [k01 end1] pi_ge0 same z p_gt0.
suff moved i : moves_at (step_velocity kappa kappa' pi) z i -> i = i0.
  by apply/at_most_oneP => i j /moved -> /moved ->.
move=> /existsP [v]; apply: contraNeq => i_neq.
apply/eqP; apply: step_velocity_still => // h pi_gt0.
by apply: contra_neqN i_neq; exact: same.
Qed.

(** Q5 for one-position tables: if κ' ≠ κ at one position at most, p_{t+1} = P p_t. *)
Theorem Q5_one_position_table kappa kappa' pi x : schedule kappa kappa' -> nonneg pi ->
  at_most_one (fun i => kappa' i != kappa i) ->
  path kappa' pi x = push_forward (step_kernel (step_velocity kappa kappa' pi)) (path kappa pi) x.
Proof.
move=> sched pi_ge0 /at_most_oneP one; apply: Q5 => // z p_gt0.
have [i0 k0|same] := pickP (fun i => kappa' i != kappa i).
  by apply: (Q5_one_moving_position (i0 := i0)) p_gt0 => // h i _ /andP [ki _]; exact: one.
apply/at_most_oneP => i j /existsP [v].
have k_eq : kappa' i = kappa i by apply/eqP; move: (same i) => /negbFE.
by rewrite /step_velocity /step_size k_eq subrr mul0r if_same mul0r eqxx.
Qed.

End Theorems.

(** Instances on which the statements fail without a hypothesis: two positions, two states. *)
Section Counterexamples.
Variable R : realFieldType.
Notation bits := {ffun bool -> bool}.
Notation half := (2%:R^-1 : R).

Definition zeros : bits := [ffun=> false].
Definition ones : bits := [ffun=> true].
Definition one_at (i : bool) : bits := [ffun j => j == i].

(** From (0, 0) to (1, 0) or to (0, 1), of mass 1/2 each. *)
Definition two_pairs (h : bits * bits) : R := \sum_(i : bool) half * delta (zeros, one_at i) h.

(** From (0, 0) to (1, 1). *)
Definition both_move (h : bits * bits) : R := delta (zeros, ones) h.

Definition at_start (i : bool) : R := 0.
Definition at_half (i : bool) : R := half.

Lemma half_ge0 : 0 <= half.
Proof. by rewrite invr_ge0 ler0n. Qed.

Lemma half_le1 : half <= 1.
Proof. by rewrite invf_le1 ?ler1n ?ltr0n. Qed.

Lemma half_schedule : schedule at_start at_half.
Proof. by split=> [i|i /eqP]; rewrite /at_start ?lexx ?ler01 // eq_sym oner_eq0. Qed.

Lemma half2 : half + half = 1.
Proof. by rewrite [RHS]splitr mul1r. Qed.

Lemma conditional_start (h : bits * bits) (z : bits) :
  conditional_path at_start h z = delta h.1 z :> R.
Proof.
rewrite -delta_all; apply: eq_bigr => i _.
by rewrite /mixture_token subr0 mul1r mul0r addr0.
Qed.

Lemma two_pairs_start (z : bits) : path at_start two_pairs z = delta zeros z.
Proof.
rewrite /path marginal_points; under eq_bigr do rewrite conditional_start.
by rewrite big_bool /= -mulrDl half2 mul1r.
Qed.

Lemma two_pairs_token i : data_token at_start two_pairs i true zeros = half.
Proof.
rewrite /data_token mean_as_marginal -/(path _ _ _) two_pairs_start /delta eqxx divr1.
rewrite marginal_points; under eq_bigr do rewrite conditional_start /delta eqxx mul1r ffunE.
by case: i; rewrite big_bool /= ?mulr1 ?mulr0 ?addr0 ?add0r.
Qed.

(** Q5 is false under the condition of Q4 alone: each pair moves one position, but different pairs
    move different ones, and the product kernel moves both. At (1, 1) it misses by 1/16. *)
Theorem Q5_without_one_position_per_state :
  [/\ schedule at_start at_half, law two_pairs,
      forall h, 0 < two_pairs h -> at_most_one (moves at_start at_half h) &
      push_forward (step_kernel (step_velocity at_start at_half two_pairs))
        (path at_start two_pairs) ones - path at_half two_pairs ones = 16%:R^-1].
Proof.
split; first exact: half_schedule.
- split=> [h|]; first by apply: sumr_ge0 => i _; rewrite mulr_ge0 ?delta_ge0 ?half_ge0.
  rewrite exchange_big big_bool /= -!mulr_sumr !sum_delta1 !mulr1; exact: half2.
- move=> h; have [/existsP [i /eqP ->] _|none] := boolP [exists i, h == (zeros, one_at i)].
    apply/at_most_oneP => j l; rewrite /moves !ffunE /= => /andP [_ ji] /andP [_ li].
    by move: ji li; case: j; case: l; case: i.
  rewrite /two_pairs big1 ?ltxx // => i _; move: none; rewrite negb_exists => /forallP /(_ i).
  by rewrite /delta => /negPf ->; rewrite mulr0.
have -> : path at_half two_pairs ones = 0.
  rewrite /path marginal_points big1 // => i _; rewrite /conditional_path /product_law.
  rewrite (bigD1 (~~ i)) //= /mixture_token !ffunE /delta /=.
  by case: i; rewrite !mulr0 addr0 mul0r mulr0.
rewrite subr0 /push_forward; under eq_bigr do rewrite two_pairs_start mulrC.
rewrite sum_delta /step_kernel /product_law big_bool /step_velocity /= !ffunE !two_pairs_token.
rewrite /step_size /at_start /at_half eq_sym oner_eq0 /delta /= !subr0 divr1 !add0r.
by rewrite -!invfM -!natrM.
Qed.

(** Q4 is false if two positions of a pair move at once: at (1, 1) it misses by 1/4. *)
Theorem Q4_without_one_position :
  [/\ schedule at_start at_half, law both_move &
      path at_half both_move ones - path at_start both_move ones
        + divergence (path at_start both_move)
            (full_field (step_velocity at_start at_half both_move)) ones = 4%:R^-1].
Proof.
split; [exact: half_schedule | exact: delta_law | ].
have pathE k z : path k both_move z = conditional_path k (zeros, ones) z.
  rewrite /path /marginal -(sum_delta (zeros, ones) (fun h => conditional_path k h z)).
  by apply: eq_bigr => h _; rewrite mulrC.
have neq : (ones == zeros) = false.
  by apply/eqP => /ffunP /(_ true); rewrite !ffunE.
have -> : divergence (path at_start both_move)
    (full_field (step_velocity at_start at_half both_move)) ones = 0.
  apply: big1 => z _; rewrite !pathE !conditional_start /delta neq mul0r sub0r.
  have [->|_] := eqVneq z zeros; last by rewrite mul0r oppr0.
  rewrite /full_field big1 ?mulr0 ?oppr0 // => i _.
  have -> : agree_off i ones zeros = false.
    by apply/negP => /forallP /(_ (~~ i)); rewrite !ffunE; case: i.
  by rewrite mul0r.
rewrite !pathE conditional_start /delta neq subr0 addr0 /conditional_path /product_law big_bool.
rewrite /mixture_token !ffunE /delta /= ?mulr0n ?mulr1n !mulr0 !add0r.
by rewrite !mulr1 /at_half -invfM -natrM.
Qed.

(** (0, 0) to (1, 0) of mass 1 and (0, 0) to (0, 0) of mass −1: the path is 0 at κ = 0. *)
Definition signed_pairs (h : bits * bits) : R :=
  \sum_(b : bool) (if b then 1 else -1) * delta (zeros, if b then one_at true else zeros) h.

(** Q4 is false for masses of both signs: where they cancel there is no posterior, and the law that
    appears in the step, here 1/2 at (1, 0), has no velocity. *)
Theorem Q4_without_nonneg :
  (forall h, signed_pairs h != 0 -> at_most_one (moves at_start at_half h)) /\
  path at_half signed_pairs (one_at true) - path at_start signed_pairs (one_at true)
    + divergence (path at_start signed_pairs)
        (full_field (step_velocity at_start at_half signed_pairs)) (one_at true) = half.
Proof.
have start z : path at_start signed_pairs z = 0.
  rewrite /path marginal_points; under eq_bigr do rewrite conditional_start.
  by rewrite big_bool /= mul1r mulN1r subrr.
split.
  move=> h h_neq0; apply/at_most_oneP => j l.
  suff same i : moves at_start at_half h i -> i = true by move=> /same -> /same ->.
  apply: contraTeq => i_neq; apply: contraNN h_neq0 => /andP [_ mv].
  apply/eqP; apply: big1 => b _; rewrite /delta; case: eqP => [h_eq|_]; last by rewrite mulr0.
  by move: mv; rewrite h_eq /=; case: b {h_eq}; rewrite !ffunE ?(negPf i_neq).
rewrite start subr0 /divergence big1 ?addr0 => [|z _]; last by rewrite !start !mul0r subrr.
rewrite /path marginal_points big_bool /conditional_path /product_law !big_bool /mixture_token.
by rewrite /delta /= !ffunE /at_half /=; ring.
Qed.

(** Q3 is false if κ' < 1 = κ: then λ = 0, but the law moves back to the source. *)
Theorem Q3_without_end (y0 y1 : bool) : y0 != y1 ->
  \sum_z (delta z y1 + conditional_velocity 1 0 y1 y1 z) * mixture_token 1 y0 y1 z
    - mixture_token 0 y0 y1 y1 = 1 :> R.
Proof.
move=> /negPf neq; rewrite /conditional_velocity /step_size eqxx.
under eq_bigr do rewrite mul0r addr0.
rewrite sum_delta_point /mixture_token /delta eqxx [y1 == y0]eq_sym neq.
by rewrite subrr !mul0r mulr0 !add0r mulr1 subr0.
Qed.

(** Q3 is false without the division by 1 − κ: from κ = 1/2 to 1, λ = 1/2 leaves 1/4 behind. *)
Theorem Q3_without_division :
  mixture_token 1 false true true
    - \sum_z (delta z true + (1 - half) * (delta true true - delta z true))
        * mixture_token half false true z = 4%:R^-1 :> R.
Proof.
by rewrite big_bool /mixture_token /delta /=; field.
Qed.

(** Q2 is false for λ > 1. *)
Theorem Q2_without_step_at_most_one :
  ~ valid_token (fun v => 2%:R * (delta true v - delta false v) : R) false.
Proof.
case=> _ /andP [low _] _; move: low; rewrite /delta /= sub0r mulrN1 ler_opp2.
by rewrite (ler_nat _ 2 1).
Qed.

(** λ is negative where the schedule decreases. *)
Theorem Q2_step_size_without_order : step_size half 0 = -1.
Proof.
have neq : half != 1.
  apply/eqP => h1; have := half2; rewrite h1 => /eqP.
  by rewrite -subr_eq0 addrK oner_eq0.
have rest : 1 - half = half by rewrite -[X in X - _]half2 addrK.
by rewrite /step_size (negPf neq) sub0r rest mulNr divff // invr_eq0 pnatr_eq0.
Qed.

(** Q1 is false without Q2: the kernel has the mass −2 at (1, 0). *)
Theorem Q1_without_valid_velocity :
  step_kernel (fun (_ v : bool) (_ : bits) => 2%:R * (delta true v - delta false v) : R)
    (one_at true) zeros = - 2%:R.
Proof. by rewrite /step_kernel /product_law big_bool /delta !ffunE /=; ring. Qed.

(** (0, 0) to (1, 1) and (0, 1) to (1, 0), of mass 1/2 each: what one pair adds the other takes
    away. *)
Definition opposite_pairs (h : bits * bits) : R :=
  \sum_(b : bool) half * delta (if b then (zeros, ones) else (one_at true, one_at false)) h.

(** The condition of Q4 is not necessary for every source: here every pair moves two positions at
    once, and Q4 holds. *)
Theorem Q4_condition_not_necessary x :
  [/\ law opposite_pairs, 0 < opposite_pairs (zeros, ones),
      ~~ at_most_one (moves at_start at_half (zeros, ones)) &
      path at_half opposite_pairs x - path at_start opposite_pairs x
        + divergence (path at_start opposite_pairs)
            (full_field (step_velocity at_start at_half opposite_pairs)) x = 0].
Proof.
have pi_ge0 : nonneg opposite_pairs.
  by move=> h; apply: sumr_ge0 => b _; rewrite mulr_ge0 ?delta_ge0 ?half_ge0.
split.
- split=> //; rewrite exchange_big big_bool /= -!mulr_sumr !sum_delta1 !mulr1; exact: half2.
- rewrite /opposite_pairs big_bool /= ltr_paddr ?mulr_ge0 ?delta_ge0 ?half_ge0 //.
  by rewrite /delta eqxx mulr1 invr_gt0 ltr0n.
- apply/negP => /at_most_oneP /(_ true false); rewrite /moves !ffunE /at_start /at_half.
  by rewrite invr_eq0 pnatr_eq0 => /(_ isT isT).
rewrite Q4_residual //; last exact: half_schedule.
transitivity (\sum_(b : bool) half * joint_change at_start at_half
    (if b then (zeros, ones) else (one_at true, one_at false)) x).
  transitivity (marginal (fun h (_ : unit) => joint_change at_start at_half h x)
    opposite_pairs tt); first by apply: eq_bigr => h _; rewrite mulrC.
  by rewrite marginal_points; apply: eq_bigr => b _.
have others (f : bool -> R) i : \prod_(j | j != i) f j = f (~~ i).
  by rewrite (big_pred1 (~~ i)) // => j /=; case: i; case: j.
rewrite big_bool /joint_change !big_bool /= !others /mixture_token !ffunE /at_start /at_half.
by case: (x true); case: (x false); rewrite /delta /=; field.
Qed.

End Counterexamples.
