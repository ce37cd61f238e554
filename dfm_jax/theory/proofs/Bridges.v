(** Notions that two files have in their own forms are the same.

    Each theme defines what it needs in the form that its proofs like best: prefixes as indicators,
    by an order, or as sets of positions; the gate along a list or along the steps. *)

From mathcomp Require Import all_ssreflect all_algebra.
From DFM Require Import Basics Paths Experts Steps Autoregression Samplers Information Accounting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Prefixes.
Variables (R : realFieldType) (n : nat) (S : finType).
Implicit Types (q : {ffun 'I_n -> S} -> R) (x y : {ffun 'I_n -> S}).

Lemma same_prefixE t x y : same_prefix t y x = agree_before (@nat_of_ord n) t y x.
Proof. by []. Qed.

Lemma agree_on_before t x y : agree_on (before t) x y = same_prefix t y x.
Proof. by apply: eq_forallb => i; rewrite /before eq_sym. Qed.

(** q(x^{<t}) of Experts.v is that of Autoregression.v and of Accounting.v. *)
Theorem A2_prefix_of_D6 t q x : prefix_mass t q x = Autoregression.prefix_law (@nat_of_ord n) q t x.
Proof. by []. Qed.

Theorem B4_prefix_of_D6 t q x : mass q (before t) x = prefix_mass t q x.
Proof.
rewrite /mass big_mkcond; apply: eq_bigr => y _.
by rewrite agree_on_before /prefix_indicator; case: same_prefix; rewrite ?mul1r ?mul0r.
Qed.

(** The next-token law of D6 is that of A3, and that of B4. *)
Theorem A3_next_token_of_D6 (t : 'I_n) q x v :
  Experts.next_token t q x v = token_given_prefix (@nat_of_ord n) q t t v x.
Proof.
rewrite /Experts.next_token /mean /token_given_prefix mulr_suml; apply: eq_bigr => y _.
by rewrite /posterior /delta mulrAC [_ * (v == _)%:R]mulrAC eq_sym.
Qed.

Theorem B4_next_token_of_D6 (t : 'I_n) q x v :
  Accounting.next_token q t x v = Experts.next_token t q x v.
Proof.
rewrite A3_next_token_of_D6 /Accounting.next_token /token_given B4_prefix_of_D6; congr (_ / _).
rewrite big_mkcond; apply: eq_bigr => y _; rewrite agree_on_before -same_prefixE.
by case: same_prefix; case: (y t == v); rewrite ?mul1r ?mul0r.
Qed.

End Prefixes.

Section Gates.
Variables (R : realFieldType) (K : finType).

(** The gate along a list of likelihoods (D7) is the one along the steps (S7). *)
Theorem S7_gate_of_D7 (w : K -> R) (f : nat -> K -> R) t k :
  running_gate w f t k = bayes_gate w [seq f s | s <- iota 0 t] k.
Proof.
elim: t k => [//|t IH] k; rewrite -addn1 iotaD map_cat /bayes_gate foldl_cat /= add0n addn1 /=.
rewrite /bayes_gate_update -/(bayes_gate w _) IH; congr (_ / _).
by apply: eq_bigr => j _; rewrite IH.
Qed.

End Gates.
