(** P1 to P7: conditional paths, the marginal path, and the posterior over pairs. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Paths.
Variables (R : realFieldType) (I S : finType).
Implicit Types (x z : {ffun I -> S}).

(** Σ_j κ^j h^j(v). *)
Definition convex_token (J : finType) (kappa : J -> R) (h : J -> S -> R) (v : S) : R :=
  \sum_j kappa j * h j v.

(** (1 − κ) δ_{x_0}(v) + κ δ_{x_1}(v). *)
Definition mixture_token (kappa : R) (x0 x1 v : S) : R :=
  (1 - kappa) * delta x0 v + kappa * delta x1 v.

(** p_t(z | x_0, x_1) of the mixture path with a κ for each position. *)
Definition conditional_path (kappa : I -> R) (h : {ffun I -> S} * {ffun I -> S}) z : R :=
  product_law (fun i => mixture_token (kappa i) (h.1 i) (h.2 i)) z.

(** The law of the token at position i. *)
Definition token_marginal (p : {ffun I -> S} -> R) i v : R :=
  \sum_(x : {ffun I -> S}) (x i == v)%:R * p x.

(** p_{1|t}^i(v | z) and p_{0|t}^i(v | z), for any conditional path c of the pairs. *)
Definition token_posterior (c : {ffun I -> S} * {ffun I -> S} -> {ffun I -> S} -> R) pi z i v : R :=
  mean c pi z (fun h => delta (h.2 i) v).
Definition source_posterior (c : {ffun I -> S} * {ffun I -> S} -> {ffun I -> S} -> R) pi z i v : R :=
  mean c pi z (fun h => delta (h.1 i) v).

(** A product with one factor replaced by an indicator. *)
Lemma token_marginal_product (p : I -> S -> R) i v :
  (forall j, \sum_a p j a = 1) -> token_marginal (product_law p) i v = p i v.
Proof.
move=> p1; pose p' j a := if j == i then (a == v)%:R * p j a else p j a.
have eq_p' x : (x i == v)%:R * product_law p x = product_law p' x.
  rewrite /product_law (bigD1 i) //= [in RHS](bigD1 i) //= /p' eqxx -mulrA; congr (_ * (_ * _)).
  by apply: eq_bigr => j /negPf ->.
rewrite /token_marginal (eq_bigr _ (fun x _ => eq_p' x)) sum_product_law (bigD1 i) //=.
rewrite [X in _ * X]big1 ?mulr1 => [|j /negPf ji]; last by rewrite -(p1 j); apply: eq_bigr => a _; rewrite /p' ji.
rewrite /p' eqxx (bigD1 v) //= eqxx mul1r big1 ?addr0 // => a /negPf ->.
by rewrite mul0r.
Qed.

(** P1. p_t(x | x_0, x_1) = Π_i p_t^i(x^i | x_0, x_1) is a law if every factor is one, and its
    tokens have the laws p_t^i. *)
Theorem P1 (p : I -> S -> R) : (forall i, law (p i)) ->
  law (product_law p) /\ forall i v, token_marginal (product_law p) i v = p i v.
Proof.
move=> lawp; split; last by move=> i v; apply: token_marginal_product => j; case: (lawp j).
split=> [x|]; first by apply: prodr_ge0 => i _; case: (lawp i).
by rewrite sum_product_law big1 // => i _; case: (lawp i).
Qed.

(** P1, independence: the law of two different tokens is the product of their laws. *)
Theorem P1_independent (p : I -> S -> R) i j a b : (forall i, law (p i)) -> i != j ->
  \sum_(x : {ffun I -> S}) ((x i == a) && (x j == b))%:R * product_law p x = p i a * p j b.
Proof.
move=> lawp ij; pose p' l c := (if l == i then (c == a)%:R else 1) * ((if l == j then (c == b)%:R else 1) * p l c).
have eq_p' x : ((x i == a) && (x j == b))%:R * product_law p x = product_law p' x.
  rewrite /product_law !big_split /= mulrA; congr (_ * _).
  rewrite (bigD1 i) //= eqxx big1 ?mulr1 => [|l /negPf -> //].
  rewrite (bigD1 j) //= eqxx big1 ?mulr1 => [|l /negPf -> //].
  by case: (x i == a); case: (x j == b); rewrite ?mul1r ?mulr0 ?mul0r.
rewrite (eq_bigr _ (fun x _ => eq_p' x)) sum_product_law (bigD1 i) //= (bigD1 j) 1?eq_sym //=.
rewrite [X in _ * (_ * X)]big1 ?mulr1; last first.
  move=> l /andP[/negPf li /negPf lj]; rewrite /p' li lj -[RHS](lawp l).2.
  by apply: eq_bigr => c _; rewrite !mul1r.
congr (_ * _); rewrite /p' ?eqxx ?(negPf ij) ?[j == i]eq_sym ?(negPf ij).
  rewrite (bigD1 a) //= eqxx !mul1r big1 ?addr0 // => c /negPf ->; exact: mul0r.
rewrite (bigD1 b) //= eqxx !mul1r big1 ?addr0 // => c /negPf ->; by rewrite mul0r mulr0.
Qed.

(** P2. p_t^i(v) = Σ_j κ^j h^j(v) is a law if κ and every h^j are. *)
Theorem P2 (J : finType) (kappa : J -> R) (h : J -> S -> R) :
  law kappa -> (forall j, law (h j)) -> law (convex_token kappa h).
Proof.
move=> [k_ge0 k1] lawh; split=> [v|].
  by apply: sumr_ge0 => j _; rewrite mulr_ge0 //; case: (lawh j).
rewrite exchange_big -[RHS]k1; apply: eq_bigr => j _.
by rewrite -mulr_sumr (lawh j).2 mulr1.
Qed.

(** P3. p_t^i = (1 − κ) δ_{x_0} + κ δ_{x_1} is a law for κ in [0, 1]; κ = 0 gives δ_{x_0} and
    κ = 1 gives δ_{x_1}. *)
Theorem P3 (kappa : R) (x0 x1 : S) : 0 <= kappa <= 1 ->
  law (mixture_token kappa x0 x1) /\
  (forall v, mixture_token 0 x0 x1 v = delta x0 v) /\
  (forall v, mixture_token 1 x0 x1 v = delta x1 v).
Proof.
move=> /andP[k_ge0 k_le1]; split; [split=> [v|]|split=> v].
- by rewrite addr_ge0 ?mulr_ge0 ?subr_ge0 // ler0n.
- by rewrite /mixture_token big_split /= -!mulr_sumr !sum_delta1 !mulr1 subrK.
- by rewrite /mixture_token subr0 mul1r mul0r addr0.
- by rewrite /mixture_token subrr mul0r mul1r add0r.
Qed.

(** P3 is P2 with two base laws. *)
Theorem P3_is_P2 (kappa : R) (x0 x1 v : S) :
  mixture_token kappa x0 x1 v
  = convex_token (fun j : bool => if j then kappa else 1 - kappa)
      (fun j => if j then delta x1 else delta x0) v.
Proof. by rewrite /mixture_token /convex_token big_bool addrC. Qed.

Lemma prod_delta x z : \prod_i delta (x i) (z i) = delta x z :> R.
Proof.
rewrite /delta; have [->|/eqP zx] := eqVneq z x; first by rewrite big1 // => i _; rewrite eqxx.
have /existsP[i /negPf zi] : [exists i, z i != x i].
  by rewrite -negb_forall; apply/negP => /forallP eqzx; apply: zx; apply/ffunP => i; apply/eqP.
by rewrite (bigD1 i) //= zi mul0r.
Qed.

Lemma conditional_path_law kappa h : (forall i, 0 <= kappa i <= 1) -> law (conditional_path kappa h).
Proof. by move=> k01; apply: (P1 _).1 => i; apply: (P3 _ _ _).1. Qed.

Lemma conditional_path_ge0 kappa h : (forall i, 0 <= kappa i <= 1) -> nonneg (conditional_path kappa h).
Proof. by move=> k01; case: (conditional_path_law h k01). Qed.

(** P4. p_t(x) = Σ_{x_0, x_1} p_t(x | x_0, x_1) π(x_0, x_1) is a law. *)
Theorem P4 (H Z : finType) (c : H -> Z -> R) (pi : H -> R) :
  (forall h, law (c h)) -> law pi -> law (marginal c pi).
Proof.
move=> lawc [pi_ge0 pi1]; split.
  by apply: marginal_ge0 => // h; case: (lawc h).
rewrite exchange_big -[RHS]pi1; apply: eq_bigr => h _.
by rewrite -mulr_suml (lawc h).2 mul1r.
Qed.

(** P4, the ends: p_0 is the law of x_0 under π, p_1 that of x_1. *)
Theorem P4_ends (pi : {ffun I -> S} * {ffun I -> S} -> R) z :
  marginal (conditional_path (fun=> 0)) pi z = \sum_x pi (z, x) /\
  marginal (conditional_path (fun=> 1)) pi z = \sum_x pi (x, z).
Proof.
have end0 h : conditional_path (fun=> 0) h z = delta h.1 z.
  by rewrite -prod_delta; apply: eq_bigr => i _; rewrite /mixture_token subr0 mul1r mul0r addr0.
have end1 h : conditional_path (fun=> 1) h z = delta h.2 z.
  by rewrite -prod_delta; apply: eq_bigr => i _; rewrite /mixture_token subrr mul0r mul1r add0r.
split; rewrite /marginal.
  rewrite (eq_bigr (fun h => delta h.1 z * pi (h.1, h.2))) => [|[x y] _]; last by rewrite end0.
  rewrite -(pair_bigA _ (fun x y => delta x z * pi (x, y))) /=.
  rewrite -[RHS](sum_delta_point z (fun x => \sum_y pi (x, y))).
  by apply: eq_bigr => x _; rewrite mulr_sumr.
rewrite (eq_bigr (fun h => delta h.2 z * pi (h.1, h.2))) => [|[x y] _]; last by rewrite end1.
rewrite -(pair_bigA _ (fun x y => delta y z * pi (x, y))) /=.
by apply: eq_bigr => x _; exact: (sum_delta_point z (fun y => pi (x, y))).
Qed.

(** P5. Where p_t(z) > 0, P(h | z) = c(h, z) π(h) / p_t(z) is a law, and the prior is its mean
    under p_t: Σ_z p_t(z) P(h | z) = π(h). *)
Theorem P5 (H Z : finType) (c : H -> Z -> R) (pi : H -> R) :
  (forall h, law (c h)) -> nonneg pi ->
  (forall z : Z, 0 < marginal c pi z -> law (posterior c pi z)) /\
  (forall h, \sum_(z : Z) marginal c pi z * posterior c pi z h = pi h).
Proof.
move=> lawc pi_ge0; have c_ge0 h : nonneg (c h) by case: (lawc h).
split=> [z p_gt0|h].
  split=> [h|]; last exact: sum_posterior.
  by rewrite divr_ge0 ?mulr_ge0 //; exact: marginal_ge0.
rewrite (eq_bigr _ (fun (z : Z) _ => posteriorE z h c_ge0 pi_ge0)).
by rewrite -mulr_suml (lawc h).2 mul1r.
Qed.

(** P5, tokens: p_{1|t}^i(. | z) and p_{0|t}^i(. | z) are laws where p_t(z) > 0. *)
Theorem P5_tokens (c : {ffun I -> S} * {ffun I -> S} -> {ffun I -> S} -> R) pi z i :
  (forall h, nonneg (c h)) -> nonneg pi -> 0 < marginal c pi z ->
  law (token_posterior c pi z i) /\ law (source_posterior c pi z i).
Proof.
move=> c_ge0 pi_ge0 p_gt0.
have post_ge0 h : 0 <= posterior c pi z h by rewrite divr_ge0 ?mulr_ge0 // ltW.
split; split=> [v|]; try by apply: sumr_ge0 => h _; rewrite mulr_ge0 // ler0n.
  rewrite exchange_big /= -[RHS](sum_posterior p_gt0); apply: eq_bigr => h _.
  by rewrite -mulr_sumr sum_delta1 mulr1.
rewrite exchange_big /= -[RHS](sum_posterior p_gt0); apply: eq_bigr => h _.
by rewrite -mulr_sumr sum_delta1 mulr1.
Qed.

End Paths.
