(** Correctors that choose what they redraw (S11). *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Steps.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Redraw.
Variables (R : realFieldType) (I S : finType).
Notation states := {ffun I -> S}.
Implicit Types (x z : states) (p g : states -> R) (i : I).

(** The mass of all states that agree with z off i: p(z^{≠i}). *)
Definition others_law p i z : R := \sum_v p (put z i v).

(** With probability g(z) position i is drawn again from p(x^i | z^{≠i}), else it stays. *)
Definition redraw_kernel p g i x z : R :=
  (1 - g z) * delta z x + (agree_off i x z)%:R * (g z * (p x / others_law p i z)).

Lemma put_put z i u v : put (put z i u) i v = put z i v.
Proof. by apply/ffunP => j; rewrite !ffunE; case: eqP. Qed.

Lemma put_self z i : put z i (z i) = z.
Proof. by apply/ffunP => j; rewrite ffunE; case: eqP => [->|]. Qed.

Lemma others_law_put p i z v : others_law p i (put z i v) = others_law p i z.
Proof. by apply: eq_bigr => u _; rewrite put_put. Qed.

Lemma others_law0 p i z : nonneg p -> others_law p i z = 0 -> p z = 0.
Proof.
move=> p_ge0 o0; have : others_law p i z == 0 by rewrite o0.
rewrite /others_law psumr_eq0 => [/allP /(_ (z i) (mem_index_enum _)) /eqP|v _]; last exact: p_ge0.
by rewrite put_self.
Qed.

(** S11: if g does not read position i, the step keeps p. *)
Theorem S11 p g i x : nonneg p -> (forall z v, g (put z i v) = g z) ->
  push_forward (redraw_kernel p g i) p x = p x.
Proof.
move=> p_ge0 blind; rewrite /push_forward /redraw_kernel.
under eq_bigr do rewrite mulrDl; rewrite big_split /=.
have -> : \sum_z (1 - g z) * delta z x * p z = (1 - g x) * p x.
  rewrite -(sum_delta_point x (fun z => (1 - g z) * p z)).
  by apply: eq_bigr => z _; rewrite mulrAC mulrC.
have -> : \sum_z (agree_off i x z)%:R * (g z * (p x / others_law p i z)) * p z
    = \sum_z (agree_off i z x)%:R * (g z * (p x / others_law p i z) * p z).
  by apply: eq_bigr => z _; rewrite (agree_off_sym i x z) -!mulrA.
rewrite (sum_agree_off i x (fun z => g z * (p x / others_law p i z) * p z)).
under eq_bigr => v _ do rewrite blind others_law_put.
rewrite -mulr_sumr -/(others_law p i x).
have [o0|o_neq0] := eqVneq (others_law p i x) 0.
  by rewrite (others_law0 p_ge0 o0) o0; ring.
by rewrite -[X in _ + X]mulrA divfK //; ring.
Qed.

End Redraw.

(** S11 is false if g reads position i: one coin with p = 3/4, where tails are always drawn again and
    heads never, so that heads get 15/16. *)
Theorem S11_without_blindness :
  let p (z : {ffun 'I_1 -> bool}) : rat := if z ord0 then 3%:R / 4%:R else 1 / 4%:R in
  let g (z : {ffun 'I_1 -> bool}) : rat := if z ord0 then 0 else 1 in
  push_forward (redraw_kernel p g ord0) p [ffun _ => true] = 15%:R / 16%:R.
Proof.
move=> p g; rewrite /push_forward.
have two (f : {ffun 'I_1 -> bool} -> rat) :
    \sum_z f z = f [ffun _ => true] + f [ffun _ => false].
  rewrite (reindex (fun b : bool => [ffun _ : 'I_1 => b])) /=; last first.
    exists (fun z : {ffun 'I_1 -> bool} => z ord0) => [b _|z _]; first by rewrite ffunE.
    by apply/ffunP => j; rewrite ffunE (ord1 j).
  by rewrite big_bool.
have o z : others_law p ord0 z = 1.
  by rewrite /others_law big_bool /p !ffunE eqxx; apply/eqP; vm_compute.
have ag x z : agree_off (ord0 : 'I_1) x z.
  by apply/forallP => j; rewrite (ord1 j) eqxx.
rewrite two /redraw_kernel !o !ag /delta /g /p !ffunE eqxx.
have -> : ([ffun _ : 'I_1 => true] == [ffun _ : 'I_1 => false] :> {ffun 'I_1 -> bool}) = false.
  by apply/eqP => /ffunP /(_ ord0); rewrite !ffunE.
by apply/eqP; vm_compute.
Qed.
