(** C1 in continuous time, D9, P6 and the logarithm, with the real numbers of mathcomp-analysis.

    The files before this one take a path and its derivative as two functions. Here the derivative
    is the limit of difference quotients, for any schedule that is differentiable at t. This library
    assumes functional and propositional extensionality and indefinite description. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.classical Require Import boolp classical_sets functions mathcomp_extra.
From mathcomp.analysis Require Import reals topology normedtype derive realfun sequences exp.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths Velocities Experts Information.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Import numFieldTopology.Exports numFieldNormedType.Exports.
Local Open Scope ring_scope.

Section Derivatives.
Variable R : realType.
Implicit Types (f g : R -> R) (t : R).

(** f'(t) = df. *)
Notation derivative f t df := (is_derive (t : R^o) (1 : R^o) (f : R^o -> R^o) (df : R^o)).

Lemma derive_mul f g t df dg : derivative f t df -> derivative g t dg ->
  derivative (fun s => f s * g s) t (f t * dg + g t * df).
Proof.
move=> Df Dg; exact: (@is_deriveM _ _ (f : R^o -> R^o) (g : R^o -> R^o)).
Qed.

Lemma derive_add f g t df dg : derivative f t df -> derivative g t dg ->
  derivative (fun s => f s + g s) t (df + dg).
Proof. by move=> Df Dg; exact: (@is_deriveD _ _ _ (f : R^o -> R^o) (g : R^o -> R^o)). Qed.

Lemma derive_const t a : derivative (fun=> a : R) t 0.
Proof. exact: is_derive_cst. Qed.

Lemma derive_scale f t a df : derivative f t df -> derivative (fun s => a * f s) t (a * df).
Proof.
move=> Df; apply: (is_derive_eq (derive_mul (derive_const t a) Df)).
by rewrite mulr0 addr0.
Qed.

Lemma derive_sum (J : Type) (r : seq J) (f : J -> R -> R) (df : J -> R) t :
  (forall j, derivative (f j) t (df j)) ->
  derivative (fun s => \sum_(j <- r) f j s) t (\sum_(j <- r) df j).
Proof.
move=> Df; elim: r => [|j r IH].
  rewrite big_nil; have -> : (fun s => \sum_(j <- [::]) f j s) = fun=> 0.
    by apply: funext => s; rewrite big_nil.
  exact: derive_const.
rewrite big_cons; have -> : (fun s => \sum_(i <- j :: r) f i s)
  = fun s => f j s + \sum_(i <- r) f i s by apply: funext => s; rewrite big_cons.
exact: derive_add.
Qed.

(** (Π_j f_j)' = Σ_j f_j' Π_{i≠j} f_i. *)
Lemma derive_prod (J : eqType) (r : seq J) (f : J -> R -> R) (df : J -> R) t :
  uniq r -> (forall j, derivative (f j) t (df j)) ->
  derivative (fun s => \prod_(j <- r) f j s) t
    (\sum_(j <- r) df j * \prod_(i <- r | i != j) f i t).
Proof.
move=> uniq_r Df; elim: r uniq_r => [_|j r IH /= /andP[jr uniq_r]].
  rewrite big_nil; have -> : (fun s => \prod_(j <- [::]) f j s) = fun=> 1.
    by apply: funext => s; rewrite big_nil.
  exact: derive_const.
have -> : (fun s => \prod_(i <- j :: r) f i s) = fun s => f j s * \prod_(i <- r) f i s.
  by apply: funext => s; rewrite big_cons.
apply: (is_derive_eq (derive_mul (Df j) (IH uniq_r))).
rewrite [RHS]big_cons addrC; congr (_ + _).
  rewrite big_cons eqxx /= mulrC; congr (_ * _).
  rewrite [RHS]big_seq_cond [LHS]big_seq; apply: eq_bigl => i.
  have [ir|//] := boolP (i \in r); apply/esym/eqP => ij; by rewrite -ij ir in jr.
rewrite mulr_sumr [RHS]big_seq [LHS]big_seq; apply: eq_bigr => i ir.
rewrite big_cons ifT; first by rewrite mulrCA.
by apply/eqP => ji; rewrite ji ir in jr.
Qed.

(** C1 in continuous time. For any schedule κ^i that is differentiable at t and not yet 1 there, any
    source and any coupling, ∂_t p_t(x) + div_x(p_t u_t) = 0 with V3's velocities, marginalized. *)
Theorem C1_time (I S : finType) (pi : {ffun I -> S} * {ffun I -> S} -> R)
    (kappa : R -> I -> R) (dkappa : I -> R) (t : R) (x : {ffun I -> S}) :
  nonneg pi -> (forall i, 0 <= kappa t i < 1) ->
  (forall i, derivative (fun s => kappa s i) t (dkappa i)) ->
  derivative (fun s => marginal (conditional_path (kappa s)) pi x) t
    (- divergence (marginal (conditional_path (kappa t)) pi)
       (marginal_velocity (conditional_path (kappa t)) pi
         (fun h => full_field (own_token
           (fun i => mixture_velocity (kappa t i) (dkappa i) (h.2 i))))) x).
Proof.
move=> pi_ge0 k01 Dk.
pose p (h : {ffun I -> S} * {ffun I -> S}) i := mixture_token (kappa t i) (h.1 i) (h.2 i) : S -> R.
pose dp (h : {ffun I -> S} * {ffun I -> S}) i v := dkappa i * (delta (h.2 i) v - delta (h.1 i) v).
pose u (h : {ffun I -> S} * {ffun I -> S}) i := mixture_velocity (kappa t i) (dkappa i) (h.2 i).
have p_ge0 h i : nonneg (p h i).
  move=> v; have /andP[k0 k1] := k01 i.
  by rewrite addr_ge0 ?mulr_ge0 ?subr_ge0 ?ler0n // ltW.
have cols h i a : \sum_v u h i v a = 0.
  by rewrite -mulr_sumr sumrB !sum_delta1 subrr mulr0.
have gen h i : generates (u h i) (p h i) (dp h i).
  by apply: V3; have /andP[_ k1] := k01 i; rewrite lt_eqF.
have /eqP := C1 p_ge0 pi_ge0 cols gen x; rewrite addr_eq0 => /eqP <-.
apply: (@derive_sum _ (index_enum _) (fun h s => conditional_path (kappa s) h x * pi h)
  (fun h => product_derivative (p h) (dp h) x * pi h)) => h.
have Dtoken i : derivative (fun s => mixture_token (kappa s i) (h.1 i) (h.2 i) (x i)) t (dp h i (x i)).
  have -> : (fun s => mixture_token (kappa s i) (h.1 i) (h.2 i) (x i))
    = fun s => delta (h.1 i) (x i) + (delta (h.2 i) (x i) - delta (h.1 i) (x i)) * kappa s i.
    by apply: funext => s; rewrite /mixture_token; ring.
  apply: (is_derive_eq (derive_add (derive_const t (delta (h.1 i) (x i)))
    (derive_scale (delta (h.2 i) (x i) - delta (h.1 i) (x i)) (Dk i)))).
  by rewrite add0r mulrC.
have Dpath := derive_prod (index_enum_uniq I) Dtoken.
have -> : (fun s => conditional_path (kappa s) h x * pi h)
  = fun s => pi h * conditional_path (kappa s) h x by apply: funext => s; rewrite mulrC.
by apply: (is_derive_eq (derive_scale (pi h) Dpath)); rewrite mulrC.
Qed.

(** D9. The derivative of Σ_j w_j L_j(θ_j) along the parameters of expert k is w_k L_k'(θ_k): no
    other expert occurs in it. *)
Theorem D9 (K : finType) (w : K -> R) (L : K -> R -> R) (theta : K -> R) (k : K) (dL : R) :
  derivative (L k) (theta k) dL ->
  derivative (fun s => \sum_j w j * L j (if j == k then s else theta j)) (theta k) (w k * dL).
Proof.
move=> Dk; have -> : w k * dL = \sum_j (if j == k then w k * dL else 0).
  by rewrite -big_mkcond big_pred1_eq.
apply: derive_sum => j; have [->|jk] := eqVneq j k; first exact: derive_scale.
exact: derive_const.
Qed.

(** exp(−β d(v, x_1)) / Σ_y exp(−β d(y, x_1)). *)
Definition metric_token (S : finType) (d : S -> S -> R) (beta : R) (x1 v : S) : R :=
  expR (- beta * d v x1) / \sum_y expR (- beta * d y x1).

(** P6. p_t^i(v | x_1) ∝ exp(−β d(v, x_1)) is a law, and at β = 0 it is uniform whatever x_1 is. *)
Theorem P6 (S : finType) (d : S -> S -> R) (x1 : S) :
  (forall beta, law (metric_token d beta x1)) /\
  (forall v, metric_token d 0 x1 v = (#|S|%:R)^-1).
Proof.
have total beta : 0 < \sum_y expR (- beta * d y x1).
  by rewrite (bigD1 x1) //= ltr_paddr ?expR_gt0 // sumr_ge0 // => y _; rewrite ltW ?expR_gt0.
split=> [beta|v].
  split=> [v|]; first by rewrite divr_ge0 // ltW // expR_gt0.
  by rewrite -mulr_suml divff // lt0r_neq0.
rewrite /metric_token oppr0 mul0r expR0 div1r; congr (_^-1).
rewrite (eq_bigr (fun=> 1)) => [|y _]; last by rewrite mul0r expR0.
by rewrite sumr_const.
Qed.

(** P6, the end: for v ≠ x_1 the mass of v is at most exp(−β d(v, x_1)), which falls to 0 as β grows. *)
Theorem P6_end (S : finType) (d : S -> S -> R) (x1 v : S) (beta : R) : d x1 x1 = 0 ->
  metric_token d beta x1 v <= expR (- beta * d v x1).
Proof.
move=> d0; have one_le : 1 <= \sum_y expR (- beta * d y x1).
  rewrite (bigD1 x1) //= d0 mulr0 expR0 ler_addl sumr_ge0 // => y _.
  by rewrite ltW // expR_gt0.
rewrite ler_pdivr_mulr ?(lt_le_trans ltr01) // ler_pemulr //.
by rewrite ltW // expR_gt0.
Qed.

End Derivatives.

(** The two facts that Information.v asks of a logarithm hold for the natural logarithm of the reals:
    what is proved there is not about nothing. *)
Section Logarithm.
Variable R : realType.

Lemma ln_le_sub1 (x : R) : 0 < x -> exp.ln x <= x - 1.
Proof.
move=> x0; have [x1|x1] := leP 1 x.
  by have := @le_ln1Dx R (x - 1); rewrite subr_ge0 addrC subrK => ->.
have pos c : x <= c -> 0 < c by apply: lt_le_trans.
have [c /andP[]] : exists2 c, c \in `]x, 1[%R & exp.ln 1 - exp.ln x = c^-1 * (1 - x).
  apply: (@MVT R (@exp.ln R) (fun c => c^-1) x 1 x1).
    by move=> c; rewrite in_itv /= => /andP[/ltW /pos c0 _]; apply: is_derive1_ln.
  apply: (@continuous_in_subspaceT [topologicalType of R] [topologicalType of R]) => c.
  by rewrite inE /= in_itv /= => /andP[/pos c0 _]; exact: continuous_ln.
rewrite !bnd_simp => xc c1; rewrite exp.ln1 sub0r => e.
rewrite -ler_opp2 e opprB; apply: ler_pemull; first by rewrite subr_ge0 ltW.
by rewrite invf_ge1; [exact: ltW | apply: pos; exact: ltW].
Qed.

Definition natural_logarithm : logarithm R.
Proof.
exists (@exp.ln R); last exact: ln_le_sub1.
by move=> x y x0 y0; apply: exp.lnM; rewrite posrE.
Defined.

End Logarithm.
