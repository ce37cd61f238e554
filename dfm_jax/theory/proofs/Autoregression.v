(** Autoregression is a flow (A1 to A5).

    A table of generation is given by the step s(i) at which position i is revealed:
    κ_t^i = 1[s(i) < t]. Left to right is s(i) = i, any order a bijection, blocks any s. Positions
    are counted from 0, so that the prefix z^{<t} has t tokens. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Steps.
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

End Orders.
