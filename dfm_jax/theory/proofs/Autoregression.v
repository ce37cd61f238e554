(** Autoregression is a flow (A1 to A5).

    A table of generation is given by the step s(i) at which position i is revealed:
    κ_t^i = 1[s(i) < t]. Left to right is s(i) = i, any order a bijection, blocks any s. Positions
    are counted from 0, so that the prefix z^{<t} has t tokens. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths Steps.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Definitions.
Variables (R : realFieldType) (I S : finType) (s : I -> nat).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.

(** κ_t^i = 1[s(i) < t]. *)
Definition order_table (t : nat) (i : I) : R := (s i < t)%N%:R.

(** x and y agree at the positions revealed before step t, and at all others. *)
Definition agree_before (t : nat) (x y : states) : bool := [forall (i | (s i < t)%N), x i == y i].
Definition agree_from (t : nat) (x y : states) : bool := [forall (i | (t <= s i)%N), x i == y i].

(** q(x^{<t}), the sum over all sequences with the revealed tokens of x. *)
Definition prefix_law (q : states -> R) (t : nat) (x : states) : R :=
  \sum_y (agree_before t y x)%:R * q y.

(** p(x^{≥t}). *)
Definition suffix_law (p : states -> R) (t : nat) (x : states) : R :=
  \sum_y (agree_from t y x)%:R * p y.

(** q(X^i = v | x^{<t}). *)
Definition token_given_prefix (q : states -> R) (t : nat) (i : I) (v : S) (x : states) : R :=
  (\sum_y (agree_before t y x)%:R * (y i == v)%:R * q y) / prefix_law q t x.

(** A3: 1[s(i) = t] (q(v | z^{<t}) − δ_{z^i}(v)). *)
Definition next_token_velocity (q : states -> R) (t : nat) (i : I) (v : S) (z : states) : R :=
  (s i == t)%:R * (token_given_prefix q t i v z - delta (z i) v).

(** The source independent of the data. *)
Definition independent (p q : states -> R) (h : pairs) : R := p h.1 * q h.2.

(** The state of the pair before step t: x_1 where revealed, x_0 elsewhere. *)
Definition cut (t : nat) (x1 x0 : states) : states :=
  [ffun i => if (s i < t)%N then x1 i else x0 i].

End Definitions.

Section Orders.
Variables (R : realFieldType) (I S : finType) (s : I -> nat).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.
Notation table := (order_table R s).
Implicit Types (x z : states) (p q : states -> R) (t : nat).

(** A1 for any order and blocks: the table starts at 0, is 1 once t exceeds every s(i), never
    decreases, and from t to t + 1 exactly the positions with s(i) = t move, with λ = 1. *)
Theorem A1_any_order t i :
  [/\ table 0 i = 0, (s i < t)%N -> table t i = 1, 0 <= table t i <= 1, table t i <= table t.+1 i &
      step_size (table t i) (table t.+1 i) = (s i == t)%:R].
Proof.
rewrite /order_table /step_size ltnS; split=> //; first by move->.
- by case: (s i < t)%N; rewrite ?lexx ?ler01.
- by case: ltnP => [/ltnW ->|_]; rewrite ?lexx ?ler0n.
case: ltngtP => [lt|gt|eq] /=; rewrite ?eqxx // eq_sym oner_eq0 ?subrr ?mul0r //.
by rewrite !subr0 divr1.
Qed.

Lemma order_schedule t : schedule (table t) (table t.+1).
Proof.
split=> i; have [_ _ k01 le _] := A1_any_order t i; first exact: k01.
have [_ _ /andP [_ le1] _ _] := A1_any_order t.+1 i.
by move=> k1; apply/eqP; rewrite eq_le le1 -k1 le.
Qed.

Lemma order_01 t i : 0 <= table t i <= 1.
Proof. by have [] := A1_any_order t i. Qed.

Lemma mixture_token_order t i (y0 y1 v : S) :
  mixture_token (table t i) y0 y1 v = delta (if (s i < t)%N then y1 else y0) v.
Proof.
rewrite /mixture_token /order_table; case: ifP => _.
  by rewrite subrr mul0r add0r mul1r.
by rewrite subr0 mul1r mul0r addr0.
Qed.

(** Given the pair, the state is certain: its revealed tokens are those of x_1. *)
Lemma conditional_path_order t (h : pairs) z :
  conditional_path (table t) h z = delta (cut s t h.2 h.1) z.
Proof.
rewrite -delta_all; apply: eq_bigr => i _.
by rewrite mixture_token_order ffunE.
Qed.

Lemma delta_cut t (x1 x0 z : states) :
  delta (cut s t x1 x0) z = (agree_before s t x1 z)%:R * (agree_from s t x0 z)%:R :> R.
Proof.
rewrite /delta -natrM mulnb; congr (_ %:R); congr nat_of_bool.
apply/eqP/andP => [->|[/forallP before /forallP from]].
  split; apply/forallP => i; apply/implyP; rewrite ffunE; first by move->.
  by rewrite leqNgt => /negPf ->.
apply/ffunP => i; rewrite ffunE; case: ltnP => si; apply/eqP.
  by have := before i; rewrite si eq_sym.
by have := from i; rewrite si eq_sym.
Qed.

(** A2 for any order and blocks: with a source independent of the data,
    p_t(x) = q(x^{<t}) p(x^{≥t}). No hypothesis on the masses. *)
Theorem A2_any_order p q t x :
  path (table t) (independent p q) x = prefix_law s q t x * suffix_law s p t x.
Proof.
rewrite /prefix_law mulrC mulr_suml /suffix_law; under [RHS]eq_bigr do rewrite mulr_sumr.
rewrite pair_bigA /=; apply: eq_bigr => h _.
by rewrite conditional_path_order delta_cut /independent; ring.
Qed.

(** A2 with one fixed source sequence, as all masks outside the context. *)
Theorem A2_fixed_source (m : states) q t x :
  path (table t) (independent (delta m) q) x = prefix_law s q t x * (agree_from s t m x)%:R.
Proof.
rewrite A2_any_order; congr (_ * _); rewrite /suffix_law.
by under eq_bigr do rewrite mulrC; exact: sum_delta.
Qed.

(** A3 for any order and blocks: the velocity of Q3 is
    1[s(i) = t] (q(v | z^{<t}) − δ_{z^i}(v)) where q(z^{<t}) p(z^{≥t}) > 0. *)
Theorem A3_any_order p q t i v z : 0 < prefix_law s q t z * suffix_law s p t z ->
  step_velocity (table t) (table t.+1) (independent p q) i v z = next_token_velocity s q t i v z.
Proof.
move=> gt0; have [_ _ _ _ step] := A1_any_order t i.
rewrite /step_velocity step /next_token_velocity; congr (_ * (_ - _)).
rewrite /data_token mean_as_marginal -/(path _ _ _) A2_any_order.
have suffix_neq0 : suffix_law s p t z != 0.
  by apply: contraTneq gt0 => ->; rewrite mulr0 ltxx.
rewrite /token_given_prefix; set num := \sum_y _.
suff -> : marginal (fun h z => conditional_path (table t) h z * delta (h.2 i) v)
            (independent p q) z = num * suffix_law s p t z.
  by rewrite -mulf_div divff // mulr1.
rewrite /num mulrC mulr_suml /suffix_law; under [RHS]eq_bigr do rewrite mulr_sumr.
rewrite pair_bigA /=; apply: eq_bigr => h _.
by rewrite conditional_path_order delta_cut /independent /delta (eq_sym v); ring.
Qed.

(** A3: the next-token velocity is valid (Q2) where q(z^{<t}) p(z^{≥t}) > 0, in blocks too. *)
Theorem A3_Q2 p q t z : nonneg p -> nonneg q ->
  0 < prefix_law s q t z * suffix_law s p t z ->
  valid_velocity (next_token_velocity s q t) z.
Proof.
move=> p_ge0 q_ge0 gt0 i; have : valid_token
    (fun v => step_velocity (table t) (table t.+1) (independent p q) i v z) (z i).
  move: i; apply: Q2_step_velocity.
  - by move=> i; have /andP [] := order_01 t i.
  - by move=> i; have [] := A1_any_order t i.
  - by move=> i; have /andP [] := order_01 t.+1 i.
  - by move=> h; rewrite mulr_ge0.
  - by rewrite A2_any_order.
case=> sum0 self other; split.
  by rewrite -[RHS]sum0; apply: eq_bigr => v _; rewrite A3_any_order.
  by rewrite -(A3_any_order i (z i) gt0).
by move=> v vz; rewrite -(A3_any_order i v gt0) other.
Qed.

Lemma one_position_table t : injective s -> at_most_one (fun i => table t.+1 i != table t i).
Proof.
move=> s_inj; have at_step i : table t.+1 i != table t i -> s i = t.
  by rewrite /order_table ltnS; case: ltngtP => //; rewrite eqxx.
by apply/at_most_oneP => i j /at_step si /at_step sj; apply: s_inj; rewrite si sj.
Qed.

Lemma independent_ge0 p q : nonneg p -> nonneg q -> nonneg (independent p q).
Proof. by move=> p_ge0 q_ge0 h; rewrite mulr_ge0. Qed.

(** The velocities agree wherever the path has mass. *)
Lemma next_token_on_path p q t i v z : nonneg p -> nonneg q ->
  path (table t) (independent p q) z != 0 ->
  step_velocity (table t) (table t.+1) (independent p q) i v z = next_token_velocity s q t i v z.
Proof.
move=> p_ge0 q_ge0 p_neq0; apply: A3_any_order; rewrite -A2_any_order lt0r p_neq0.
by apply: path_ge0; [exact: order_01 | exact: independent_ge0].
Qed.

(** A3: the next-token velocity satisfies continuity (Q4), in any order of single positions. *)
Theorem A3_Q4 p q t x : injective s -> nonneg p -> nonneg q ->
  let path_at t := path (table t) (independent p q) in
  path_at t.+1 x - path_at t x
    + divergence (path_at t) (full_field (next_token_velocity s q t)) x = 0.
Proof.
move=> s_inj p_ge0 q_ge0 path_at.
have pi_ge0 : nonneg (independent p q) by exact: independent_ge0.
have /at_most_oneP one := one_position_table t s_inj.
have moves_one h : 0 < independent p q h -> at_most_one (moves (table t) (table t.+1) h).
  by move=> _; apply/at_most_oneP => i j /andP [mi _] /andP [mj _]; exact: one.
rewrite -[RHS](Q4 x (order_schedule t) pi_ge0 moves_one); congr (_ + _).
have same (y z : states) : path_at t z * full_field (next_token_velocity s q t) y z =
    path_at t z
      * full_field (step_velocity (table t) (table t.+1) (independent p q)) y z.
  have [->|p_neq0] := eqVneq (path_at t z) 0; first by rewrite !mul0r.
  by congr (_ * _); apply: eq_bigr => i _; rewrite (@next_token_on_path p q).
by apply: eq_bigr => z _; rewrite !same.
Qed.

(** A3: the product kernel of the next-token velocity carries p_t to p_{t+1} (Q5), in any order of
    single positions. *)
Theorem A3_Q5 p q t x : injective s -> nonneg p -> nonneg q ->
  let path_at t := path (table t) (independent p q) in
  path_at t.+1 x = push_forward (step_kernel (next_token_velocity s q t)) (path_at t) x.
Proof.
move=> s_inj p_ge0 q_ge0 path_at.
rewrite /path_at (Q5_one_position_table x (order_schedule t) (independent_ge0 p_ge0 q_ge0)) //;
  last exact: one_position_table.
apply: eq_bigr => z _; rewrite -/(path_at t).
have [->|p_neq0] := eqVneq (path_at t z) 0; first by rewrite !mulr0.
by congr (_ * _); apply: eq_bigr => i _; rewrite (@next_token_on_path p q).
Qed.

(** A4 for any order and blocks, any loss of (t, i, z): the sum over steps and positions, each
    weighted with λ and averaged over X_t given the pair, is each position's loss at its own step,
    at the state with the tokens revealed before it. *)
Theorem A4_any_order (T : nat) (h : pairs) (loss : nat -> I -> states -> R) :
  (forall i, (s i < T)%N) ->
  \sum_(t < T) \sum_i step_size (table t i) (table t.+1 i) *
      (\sum_z conditional_path (table t) h z * loss t i z) =
  \sum_i loss (s i) i (cut s (s i) h.2 h.1).
Proof.
move=> le; rewrite exchange_big; apply: eq_bigr => i _ /=.
rewrite (bigD1 (Ordinal (le i))) //= [X in _ + X]big1 ?addr0.
  have [_ _ _ _ ->] := A1_any_order (s i) i; rewrite eqxx mul1r.
  by under eq_bigr do rewrite conditional_path_order; exact: sum_delta.
move=> t /negPf neq; have [_ _ _ _ ->] := A1_any_order t i.
by rewrite eq_sym -[s i]/(val (Ordinal (le i))) val_eqE neq mul0r.
Qed.

End Orders.

Section LeftToRight.
Variables (R : realFieldType) (n : nat) (S : finType).
Notation states := {ffun 'I_n -> S}.
Notation pairs := (states * states)%type.
Notation left_to_right := (order_table R (@nat_of_ord n)).
Notation prefix := (prefix_law (@nat_of_ord n)).
Notation suffix := (suffix_law (@nat_of_ord n)).
Implicit Types (x z : states) (p q : states -> R) (t : nat) (i : 'I_n).

(** A1: κ_t^i = 1[i < t] (positions from 0) is 0 at t = 0 and 1 at t = n, never decreases, and
    from t to t + 1 exactly position t changes, with λ_t^i = 1[i = t]. *)
Theorem A1 t i :
  [/\ left_to_right 0 i = 0, left_to_right n i = 1, 0 <= left_to_right t i <= 1,
      left_to_right t i <= left_to_right t.+1 i &
      step_size (left_to_right t i) (left_to_right t.+1 i) = (i == t :> nat)%:R].
Proof.
by have [zero _ k01 le step] := A1_any_order R (@nat_of_ord n) t i; rewrite /order_table ltn_ord.
Qed.

(** A2: with a source independent of the data, p_t(x) = q(x^{<t}) p(x^{≥t}). *)
Theorem A2 p q t x :
  path (left_to_right t) (independent p q) x = prefix q t x * suffix p t x.
Proof. exact: A2_any_order. Qed.

(** A2 for a source of all masks: p_t(x) = q(x^{<t}) 1[x^{≥t} = m]. *)
Theorem A2_masks (m : S) q t x :
  path (left_to_right t) (independent (delta [ffun=> m]) q) x =
  prefix q t x * [forall (i : 'I_n | (t <= i)%N), x i == m]%:R.
Proof.
rewrite A2_fixed_source; congr (_ * _%:R); congr nat_of_bool.
by apply: eq_forallb => i; rewrite ffunE eq_sym.
Qed.

(** q(X^t = v | z^{<t}) is the ratio of two prefix laws. *)
Lemma next_token_prefix q t i v z : i = t :> nat ->
  token_given_prefix (@nat_of_ord n) q t i v z = prefix q t.+1 (put z i v) / prefix q t z.
Proof.
move=> it; congr (_ / _); apply: eq_bigr => y _; rewrite -natrM mulnb; congr (_%:R * _).
congr nat_of_bool; apply/andP/forallP => [[/forallP before /eqP yi] j|before].
  apply/implyP; rewrite ltnS leq_eqVlt ffunE => /orP [/eqP jt|jt].
    by have -> : j = i by [apply: val_inj; rewrite /= it]; rewrite eqxx yi.
  have := before j; rewrite jt => yj; case: (j =P i) => // ji.
  by move: jt; rewrite ji it ltnn.
split; last by have := before i; rewrite it leqnn ffunE eqxx.
apply/forallP => j; apply/implyP => jt; have := before j; rewrite ltnS (ltnW jt) ffunE /=.
by case: (j =P i) => // ji; move: jt; rewrite ji it ltnn.
Qed.

(** A3: u_t^i(v, z) = 1[i = t] (q(v | z^{<t}) − δ_{z^i}(v)) where q(z^{<t}) p(z^{≥t}) > 0: the
    next-token conditional is the velocity. Q2, Q4 and Q5 hold by A3_Q2, A3_Q4, A3_Q5. *)
Theorem A3 p q t i v z : 0 < prefix q t z * suffix p t z ->
  step_velocity (left_to_right t) (left_to_right t.+1) (independent p q) i v z =
  (i == t :> nat)%:R * (prefix q t.+1 (put z i v) / prefix q t z - delta (z i) v).
Proof.
move=> gt0; rewrite A3_any_order // /next_token_velocity.
by case: eqP => [it|_]; rewrite ?mul0r // next_token_prefix.
Qed.

Theorem A3_steps p q t x : nonneg p -> nonneg q ->
  let path_at t := path (left_to_right t) (independent p q) in
  let u := next_token_velocity (@nat_of_ord n) q t in
  [/\ (forall z, 0 < path_at t z -> valid_velocity u z),
      path_at t.+1 x - path_at t x + divergence (path_at t) (full_field u) x = 0 &
      path_at t.+1 x = push_forward (step_kernel u) (path_at t) x].
Proof.
move=> p_ge0 q_ge0 path_at u; split.
- by move=> z; rewrite /path_at A2; exact: A3_Q2.
- by apply: A3_Q4 => //; exact: ord_inj.
- by apply: A3_Q5 => //; exact: ord_inj.
Qed.

(** A4: Σ_t Σ_i λ_t^i E[−log p̂_t^i(x_1^i | X_t)] given the pair is
    Σ_t −log p̂_t^t(x_1^t | x_1^{<t}), the next-token negative log-likelihood, term by term, with
    x_0 after the prefix (all masks, or any x_0). ln is any function, p̂ any predictor. *)
Theorem A4 (h : pairs) (ln : R -> R) (phat : nat -> 'I_n -> S -> states -> R) :
  \sum_(t < n) \sum_i step_size (left_to_right t i) (left_to_right t.+1 i) *
      (\sum_z conditional_path (left_to_right t) h z * - ln (phat t i (h.2 i) z)) =
  \sum_(t < n) - ln (phat t t (h.2 t) (cut (@nat_of_ord n) t h.2 h.1)).
Proof.
by rewrite (@A4_any_order R _ _ (@nat_of_ord n) n h (fun t i z => - ln (phat t i (h.2 i) z))).
Qed.

End LeftToRight.

Section Context.
Variables (R : realFieldType) (I S : finType).
Notation states := {ffun I -> S}.
Notation pairs := (states * states)%type.
Implicit Types (x z : states) (kappa : I -> R) (pi : pairs -> R).

(** The context of x_1 with the mask m elsewhere. *)
Definition with_context (ctx : pred I) (m : S) (x1 : states) : states :=
  [ffun i => if ctx i then x1 i else m].

(** X_0 = I ⊙ X_1 + (1 − I) ⊙ m, X_1 of the law q. *)
Definition context_coupling (ctx : pred I) (m : S) (q : states -> R) (h : pairs) : R :=
  delta (with_context ctx m h.2) h.1 * q h.2.

(** A5: where x_0^i = x_1^i the state shows that token at every time. *)
Theorem A5_state kappa (h : pairs) i z :
  h.1 i = h.2 i -> conditional_path kappa h z != 0 -> z i = h.2 i.
Proof.
move=> same c_neq0; apply/eqP; apply: contraNT c_neq0 => zi.
rewrite /conditional_path /product_law (bigD1 i) //= same mixture_token_same.
by rewrite /delta (negPf zi) mul0r.
Qed.

(** A5: a position with x_0^i = x_1^i for every pair of positive mass never moves, whatever the
    schedule: where p_t(z) > 0 its posterior is δ_{z^i} and its velocity 0. *)
Theorem A5 kappa kappa' pi i v z : nonneg pi -> 0 < path kappa pi z ->
  (forall h, 0 < pi h -> h.1 i = h.2 i) ->
  data_token kappa pi i v z = delta (z i) v /\ step_velocity kappa kappa' pi i v z = 0.
Proof.
move=> pi_ge0 p_gt0 same; rewrite /step_velocity.
suff -> : data_token kappa pi i v z = delta (z i) v by rewrite subrr mulr0.
rewrite -[RHS](mean_const (delta (z i) v) p_gt0); apply: eq_bigr => h _.
have [c0|] := eqVneq (conditional_path kappa h z * pi h) 0; first by rewrite /posterior c0 !mul0r.
rewrite mulf_eq0 negb_or => /andP [c_neq0 pi_neq0].
by rewrite (A5_state (same h _) c_neq0) // lt0r pi_neq0 pi_ge0.
Qed.

(** A5: a step never changes a position without a velocity. *)
Theorem A5_kernel (u : I -> S -> states -> R) i x z :
  (forall v, u i v z = 0) -> step_kernel u x z != 0 -> x i = z i.
Proof.
move=> still; apply: contra_neq_eq => xi; rewrite /step_kernel /product_law (bigD1 i) //= still.
by rewrite addr0 /delta (negPf xi) mul0r.
Qed.

(** A5: with x_0 = I ⊙ x_1 + (1 − I) ⊙ m the context I never moves, under any schedule. *)
Theorem A5_context (ctx : pred I) (m : S) (q : states -> R) kappa kappa' i v z :
  nonneg q -> ctx i -> 0 < path kappa (context_coupling ctx m q) z ->
  data_token kappa (context_coupling ctx m q) i v z = delta (z i) v /\
  step_velocity kappa kappa' (context_coupling ctx m q) i v z = 0.
Proof.
move=> q_ge0 ci p_gt0; apply: A5 => // h; first by rewrite mulr_ge0 ?delta_ge0.
rewrite /context_coupling /delta; case: eqP => [-> _|_]; first by rewrite ffunE ci.
by rewrite mul0r ltxx.
Qed.

(** A5: if q is the law of the data given the context of c, this coupling is the independent one
    with the one source sequence of c's context and masks: A2 and A3 hold given c. *)
Theorem A5_given_context (ctx : pred I) (m : S) (c : states) (q : states -> R) h :
  (forall y, q y != 0 -> forall i, ctx i -> y i = c i) ->
  context_coupling ctx m q h = independent (delta (with_context ctx m c)) q h.
Proof.
move=> given; rewrite /context_coupling /independent.
have [->|q_neq0] := eqVneq (q h.2) 0; first by rewrite !mulr0.
congr (delta _ _ * _); apply/ffunP => i; rewrite !ffunE; case: ifP => // ci.
exact: given.
Qed.

(** A5 with A2: given the context, p_t(x) = q(x^{<t}) 1[x^{≥t} = m, or the context's token]. *)
Theorem A5_path (s : I -> nat) (ctx : pred I) (m : S) (c : states) (q : states -> R) t x :
  (forall y, q y != 0 -> forall i, ctx i -> y i = c i) ->
  path (order_table R s t) (context_coupling ctx m q) x =
  prefix_law s q t x * (agree_from s t (with_context ctx m c) x)%:R.
Proof.
move=> given; rewrite -A2_fixed_source; apply: eq_bigr => h _.
by rewrite (A5_given_context _ _ given).
Qed.

End Context.

(** Instances on which the statements fail without a hypothesis: two positions, in the order
    false, true. *)
Section Counterexamples.
Variable R : realFieldType.
Notation bits := {ffun bool -> bool}.
Notation half := (2%:R^-1 : R).

Definition constant (b : bool) : bits := [ffun=> b].

(** The source is the data: (0, 0) or (1, 1), of mass 1/2 each. *)
Definition same_pair (h : bits * bits) : R :=
  \sum_(b : bool) half * delta (constant b, constant b) h.

(** A2 is false if the source depends on the data: p_1 at (0, 0) is 1/2, the product of the
    prefix law and the suffix law is 1/4. *)
Theorem A2_without_independence :
  let q (y : bits) := \sum_(b : bool) half * delta (constant b) y in
  path (order_table R nat_of_bool 1) same_pair (constant false)
    - prefix_law nat_of_bool q 1 (constant false) * suffix_law nat_of_bool q 1 (constant false)
  = 4%:R^-1.
Proof.
move=> q.
have sum_q (f : bits -> R) :
    \sum_y f y * q y = half * f (constant true) + half * f (constant false).
  transitivity (\sum_(b : bool) half * f (constant b)); last by rewrite big_bool.
  rewrite /q; under eq_bigr do rewrite mulr_sumr; rewrite exchange_big; apply: eq_bigr => b _ /=.
  rewrite -(sum_delta (constant b) f) mulr_sumr; apply: eq_bigr => y _.
  by rewrite mulrCA (mulrC (f y)).
have before : forall b, agree_before nat_of_bool 1 (constant b) (constant false) = ~~ b.
  case; last by apply/forallP => j; rewrite !ffunE eqxx implybT.
  by apply/negP => /forallP /(_ false); rewrite !ffunE.
have from : forall b, agree_from nat_of_bool 1 (constant b) (constant false) = ~~ b.
  case; last by apply/forallP => j; rewrite !ffunE eqxx implybT.
  by apply/negP => /forallP /(_ true); rewrite !ffunE.
have point : forall b, conditional_path (order_table R nat_of_bool 1)
    (constant b, constant b) (constant false) = (~~ b)%:R.
  by move=> b; rewrite conditional_path_order delta_cut before from -natrM mulnb andbb.
rewrite /path /same_pair marginal_points big_bool /= !point /prefix_law /suffix_law !sum_q.
by rewrite !before !from /=; field.
Qed.

(** A3 is false if the prefix is forgotten: for data (0, 0) or (1, 1), given that the first token
    is 0 the second is 0 with probability 1, not with its marginal 1/2. *)
Theorem A3_without_prefix :
  let q (y : bits) := \sum_(b : bool) half * delta (constant b) y in
  token_given_prefix nat_of_bool q 1 true false (constant false) = 1 /\
  token_law q true false = half.
Proof.
move=> q; have sum_q (f : bits -> R) :
    \sum_y f y * q y = half * f (constant true) + half * f (constant false).
  transitivity (\sum_(b : bool) half * f (constant b)); last by rewrite big_bool.
  rewrite /q; under eq_bigr do rewrite mulr_sumr; rewrite exchange_big; apply: eq_bigr => b _ /=.
  rewrite -(sum_delta (constant b) f) mulr_sumr; apply: eq_bigr => y _.
  by rewrite mulrCA (mulrC (f y)).
have before : forall b, agree_before nat_of_bool 1 (constant b) (constant false) = ~~ b.
  case; last by apply/forallP => j; rewrite !ffunE eqxx implybT.
  by apply/negP => /forallP /(_ false); rewrite !ffunE.
split; last by rewrite /token_law sum_q !ffunE /=; ring.
by rewrite /token_given_prefix /prefix_law !sum_q !before !ffunE /=; field.
Qed.

(** A4 is false without λ: every position not yet revealed would be counted. *)
Theorem A4_without_step_size (h : bits * bits) :
  \sum_(t < 2) \sum_(i : bool) \sum_z conditional_path (order_table R nat_of_bool t) h z * 1
    - \sum_(i : bool) 1 = 2%:R.
Proof.
rewrite (eq_bigr (fun=> \sum_(i : bool) 1)); last first.
  move=> t _; apply: eq_bigr => i _; under eq_bigr do rewrite mulr1.
  exact: sum_conditional_path.
by rewrite !big_ord_recl big_ord0 !big_bool /=; ring.
Qed.

(** A5 is false for a position whose x_0 is not its x_1: it moves. *)
Theorem A5_without_given_token i :
  step_velocity (at_start R) (at_half R) (both_move R) i true zeros = half.
Proof.
have both z : path (at_start R) (both_move R) z = delta zeros z.
  rewrite /path /marginal -(conditional_start R (zeros, ones)).
  rewrite -(sum_delta (zeros, ones) (fun h => conditional_path (at_start R) h z)).
  by apply: eq_bigr => h _; rewrite mulrC.
rewrite /step_velocity /step_size /at_start /at_half eq_sym oner_eq0 ffunE.
have -> : data_token (at_start R) (both_move R) i true zeros = 1.
  rewrite /data_token mean_as_marginal -/(path _ _ _) both /delta eqxx divr1 /marginal.
  transitivity (\sum_h delta (zeros, ones) h
    * (conditional_path (at_start R) h zeros * (true == h.2 i)%:R)).
    by apply: eq_bigr => h _; rewrite mulrC.
  by rewrite sum_delta conditional_start /delta /= ffunE eqxx mulr1.
by rewrite /delta /=; field.
Qed.

End Counterexamples.
