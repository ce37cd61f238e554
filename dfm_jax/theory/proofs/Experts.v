(** V4, V5 and C1, and D1 to D8 with D13: what marginal velocities generate, and how experts mix. *)

From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp.algebra_tactics Require Import ring.
From DFM Require Import Basics Paths Velocities.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Marginalization.
Variables (R : realFieldType) (H Z : finType).
Variables (c dc : H -> Z -> R) (pi : H -> R) (u : H -> Z -> Z -> R).

(** u(x, z) = E[ u(x, z | H) | z ]. *)
Definition marginal_velocity (c : H -> Z -> R) pi (u : H -> Z -> Z -> R) (x z : Z) : R :=
  mean c pi z (fun h => u h x z).

(** V4. If for every pair the conditional velocity generates the conditional path, then
    u(x, z) = E[u(x, z | X_0, X_1) | X_t = z] generates p_t. Nothing is normalized. *)
Theorem V4 : (forall h, nonneg (c h)) -> nonneg pi -> (forall h, generates (u h) (c h) (dc h)) ->
  generates (marginal_velocity c pi u) (marginal c pi) (marginal dc pi).
Proof.
move=> c_ge0 pi_ge0 gen x; rewrite /flow.
rewrite (eq_bigr (fun z => \sum_h c h z * pi h * u h x z)) => [|z _]; last first.
  by rewrite mulrC meanE.
rewrite exchange_big; apply: eq_bigr => h _ /=.
rewrite -(gen h) /flow mulr_suml; apply: eq_bigr => z _.
by rewrite mulrAC [c h z * _]mulrC.
Qed.

(** V4: the columns of the marginal velocity sum to 0 if those of every conditional one do. *)
Theorem V4_columns : (forall h z, \sum_x u h x z = 0) ->
  forall z, \sum_x marginal_velocity c pi u x z = 0.
Proof.
move=> cols z; rewrite exchange_big big1 // => h _ /=.
by rewrite -mulr_sumr cols mulr0.
Qed.

(** V4 as the continuity equation: ∂_t p_t(x) + div_x(p_t u_t) = 0. *)
Theorem V4_continuity : (forall h, nonneg (c h)) -> nonneg pi ->
  (forall h z, \sum_x u h x z = 0) -> (forall h, generates (u h) (c h) (dc h)) ->
  forall x, marginal dc pi x + divergence (marginal c pi) (marginal_velocity c pi u) x = 0.
Proof.
move=> c_ge0 pi_ge0 cols gen; apply/continuity; first exact: V4_columns.
exact: V4.
Qed.

End Marginalization.

Section Continuity.
Variables (R : realFieldType) (I S : finType).
Implicit Types (x z : {ffun I -> S}).

(** The derivative of Π_i p^i(x^i): Σ_i ṗ^i(x^i) Π_{j≠i} p^j(x^j). *)
Definition product_derivative (p dp : I -> S -> R) x : R :=
  \sum_i dp i (x i) * \prod_(j | j != i) p j (x j).

(** A velocity of each token that looks at its own token only. *)
Definition own_token (u : I -> S -> S -> R) i v z : R := u i v (z i).

(** C1 for one pair: velocities that generate their tokens make a full field that generates the
    product path. *)
Lemma product_generates (p dp : I -> S -> R) (u : I -> S -> S -> R) :
  (forall i, generates (u i) (p i) (dp i)) ->
  generates (full_field (own_token u)) (product_law p) (product_derivative p dp).
Proof.
move=> gen x; rewrite /flow /full_field.
rewrite (eq_bigr _ (fun z _ => mulr_suml _ _ _ _)) exchange_big; apply: eq_bigr => i _ /=.
rewrite (eq_bigr (fun z => (agree_off i z x)%:R * (u i (x i) (z i) * product_law p z))); last first.
  by move=> z _; rewrite agree_off_sym mulrA.
rewrite sum_agree_off -(gen i) /flow mulr_suml; apply: eq_bigr => v _.
rewrite ffunE eqxx -mulrA; congr (_ * _); rewrite /product_law (bigD1 i) //= ffunE eqxx.
by congr (_ * _); apply: eq_bigr => j /negPf ji; rewrite ffunE ji.
Qed.

(** C1. ∂_t p_t(x) + div_x(p_t u_t) = 0 for the marginal field of any velocities that generate the
    tokens of every pair's path, any source and any coupling. V2, V3, V6, V7, V8 and V9 give such
    velocities. The derivative of a pair's path is that of a product. *)
Theorem C1 (H : finType) (pi : H -> R) (p dp : H -> I -> S -> R) (u : H -> I -> S -> S -> R) :
  (forall h i, nonneg (p h i)) -> nonneg pi ->
  (forall h i a, \sum_v u h i v a = 0) ->
  (forall h i, generates (u h i) (p h i) (dp h i)) ->
  forall x : {ffun I -> S},
    marginal (fun h => product_derivative (p h) (dp h)) pi x
    + divergence (marginal (fun h => product_law (p h)) pi)
        (marginal_velocity (fun h => product_law (p h)) pi
          (fun h => full_field (own_token (u h)))) x = 0.
Proof.
move=> p_ge0 pi_ge0 cols gen; apply: V4_continuity => // [h x|h z|h].
- by apply: prodr_ge0 => i _.
- by apply: full_field_rate => i; exact: cols.
- exact: product_generates.
Qed.

(** The field of the marginal token velocities is the marginal of the fields. *)
Lemma marginal_field (H : finType) (c : H -> {ffun I -> S} -> R) (pi : H -> R)
    (u : H -> I -> S -> {ffun I -> S} -> R) x z :
  marginal_velocity c pi (fun h => full_field (u h)) x z
  = full_field (fun i v z => mean c pi z (fun h => u h i v z)) x z.
Proof.
rewrite /marginal_velocity /mean /full_field.
rewrite (eq_bigr _ (fun h _ => mulr_sumr _ _ _ _)) exchange_big; apply: eq_bigr => i _ /=.
by rewrite mulr_sumr; apply: eq_bigr => h _; rewrite mulrCA.
Qed.

(** V5. Where p_t(z) > 0, the mean of V3's velocities is κ̇/(1 − κ) [p_{1|t}^i(v | z) − δ_{z^i}(v)]. *)
Theorem V5 (c : {ffun I -> S} * {ffun I -> S} -> {ffun I -> S} -> R) pi kappa dkappa z i v :
  0 < marginal c pi z ->
  mean c pi z (fun h => mixture_velocity kappa dkappa (h.2 i) v (z i))
  = posterior_to_velocity kappa dkappa (token_posterior c pi z i) v (z i).
Proof.
move=> p_gt0; rewrite /mixture_velocity mean_scale mean_sub mean_const //.
Qed.

(** V6. Where p_t(z) > 0, the mean of the backward velocities is
    κ̇/κ [δ_{z^i}(v) − p_{0|t}^i(v | z)]. *)
Theorem V6_posterior (c : {ffun I -> S} * {ffun I -> S} -> {ffun I -> S} -> R) pi kappa dkappa z i v :
  0 < marginal c pi z ->
  mean c pi z (fun h => backward_velocity kappa dkappa (h.1 i) v (z i))
  = posterior_to_backward kappa dkappa (source_posterior c pi z i) v (z i).
Proof.
move=> p_gt0; rewrite /backward_velocity mean_scale mean_sub mean_const //.
Qed.

End Continuity.

Section Experts.
Variables (R : realFieldType) (H Z K : finType).
Variables (c : H -> Z -> R) (w : K -> R) (pi : K -> H -> R).

(** p_t^k, the path of part k. *)
Definition part_path (c : H -> Z -> R) (pi : K -> H -> R) (k : K) : Z -> R := marginal c (pi k).

(** r_k(z, t) = w_k p_t^k(z) / p_t(z). *)
Definition expert_posterior (c : H -> Z -> R) w (pi : K -> H -> R) (z : Z) (k : K) : R :=
  gate w (part_path c pi) z k.

(** D1. π = Σ_k w_k π_k, so the data law (any marginal g of the pair) is q = Σ_k w_k q_k. *)
Theorem D1 (X : finType) (g : H -> X) (x : X) :
  \sum_(h | g h == x) mixture w pi h = mixture w (fun k x => \sum_(h | g h == x) pi k h) x.
Proof.
rewrite exchange_big; apply: eq_bigr => k _ /=.
by rewrite mulr_sumr.
Qed.

(** D1: the mixture of couplings is a coupling. *)
Theorem D1_law : law w -> (forall k, law (pi k)) -> law (mixture w pi).
Proof.
move=> [w_ge0 w1] lawpi; split; first by apply: mixture_ge0 => // k; case: (lawpi k).
rewrite exchange_big -[RHS]w1; apply: eq_bigr => k _ /=.
by rewrite -mulr_sumr (lawpi k).2 mulr1.
Qed.

(** D2. p_t = Σ_k w_k p_t^k, the same conditional path for all parts. *)
Theorem D2 z : marginal c (mixture w pi) z = mixture w (part_path c pi) z.
Proof.
rewrite /marginal (eq_bigr _ (fun h _ => mulr_sumr _ _ _ _)) exchange_big; apply: eq_bigr => k _ /=.
by rewrite mulr_sumr; apply: eq_bigr => h _; rewrite mulrCA.
Qed.

Hypothesis c_ge0 : forall h, nonneg (c h).
Hypothesis w_ge0 : nonneg w.
Hypothesis pi_ge0 : forall k, nonneg (pi k).

Lemma part_path_ge0 k : nonneg (part_path c pi k).
Proof. exact: marginal_ge0. Qed.

(** D3. Where p_t(z) > 0, r_k(z, t) = w_k p_t^k(z) / p_t(z) is a law over the parts, and
    p_t(z) r_k(z, t) = w_k p_t^k(z). *)
Theorem D3 z : 0 < marginal c (mixture w pi) z ->
  law (expert_posterior c w pi z) /\
  forall k, marginal c (mixture w pi) z * expert_posterior c w pi z k = w k * part_path c pi k z.
Proof.
rewrite D2 => p_gt0; split=> [|k]; last by rewrite gateE // => j; exact: part_path_ge0.
split; last exact: sum_gate.
by apply: gate_ge0 => // j; exact: part_path_ge0.
Qed.

(** The tower rule: E[f | z] = Σ_k r_k(z) E[f | z, k]. *)
Lemma tower z f : 0 < marginal c (mixture w pi) z ->
  mean c (mixture w pi) z f = \sum_k expert_posterior c w pi z k * mean c (pi k) z f.
Proof.
move=> p_gt0; have p_neq0 := lt0r_neq0 p_gt0.
apply: (mulfI p_neq0); rewrite meanE //; last exact: mixture_ge0.
rewrite mulr_sumr.
rewrite (eq_bigr (fun k => w k * (part_path c pi k z * mean c (pi k) z f))) => [|k _]; last first.
  by rewrite [RHS]mulrA -(D3 p_gt0).2 -mulrA.
rewrite (eq_bigr (fun k => \sum_h w k * (c h z * pi k h * f h))) => [|k _]; last first.
  by rewrite meanE // mulr_sumr.
rewrite exchange_big; apply: eq_bigr => h _ /=.
rewrite /mixture mulr_sumr mulr_suml; apply: eq_bigr => k _.
by rewrite mulrCA !mulrA.
Qed.

(** D4. u_t(x, z) = Σ_k r_k(z, t) u_t^k(x, z) where p_t(z) > 0: the global velocity is the
    posterior-weighted sum of the experts'. The conditional velocity u(x, z | h) is any function:
    continuous or discrete time, any path, any number of positions that move. *)
Theorem D4 (u : H -> Z -> Z -> R) x z : 0 < marginal c (mixture w pi) z ->
  marginal_velocity c (mixture w pi) u x z
  = \sum_k expert_posterior c w pi z k * marginal_velocity c (pi k) u x z.
Proof. exact: tower. Qed.

(** D13. Σ_k r_k u^k generates p_t for any u^k that generate p_t^k, whether they are V4's or not. *)
Theorem D13 (u : K -> Z -> Z -> R) (dp : K -> Z -> R) :
  (forall k, generates (u k) (part_path c pi k) (dp k)) ->
  generates (fun x z => \sum_k expert_posterior c w pi z k * u k x z)
    (marginal c (mixture w pi)) (mixture w dp).
Proof.
move=> gen x; rewrite /flow.
rewrite (eq_bigr (fun z => \sum_k w k * (u k x z * part_path c pi k z))) => [|z _]; last first.
  rewrite mulrC D2 mulr_sumr; apply: eq_bigr => k _.
  rewrite /expert_posterior [LHS]mulrA gateE => [|//|j]; last exact: part_path_ge0.
  by rewrite -[LHS]mulrA (mulrC (u k x z)).
rewrite exchange_big; apply: eq_bigr => k _ /=.
by rewrite -(gen k) mulr_sumr.
Qed.

(** D8. If the part is a function f of the context, then r_k(z, t) = 1[k = f(context of z)]: a pair
    of part k has a context g(h) with f(g(h)) = k, and states keep the context of their pair. *)
Theorem D8 (C : eqType) (f : C -> K) (g : H -> C) (context : Z -> C) z :
  (forall k h, pi k h != 0 -> f (g h) = k) ->
  (forall h, c h z != 0 -> context z = g h) ->
  0 < marginal c (mixture w pi) z ->
  forall k, expert_posterior c w pi z k = (k == f (context z))%:R.
Proof.
move=> part_of keeps p_gt0.
have others k : k != f (context z) -> expert_posterior c w pi z k = 0.
  move=> kf; rewrite /expert_posterior /gate [part_path _ _ _ _]big1 ?mulr0 ?mul0r // => h _.
  have [pi0|pi_neq0] := eqVneq (pi k h) 0; first by rewrite pi0 mulr0.
  have [c0|c_neq0] := eqVneq (c h z) 0; first by rewrite c0 mul0r.
  by case/eqP: kf; rewrite (keeps h c_neq0) (part_of k h pi_neq0).
move=> k; have [->|kf] := eqVneq; last by rewrite others.
have := (D3 p_gt0).1.2; rewrite (bigD1 (f (context z))) //= [X in _ + X]big1 ?addr0 //.
Qed.

End Experts.

Section Tokens.
Variables (R : realFieldType) (I S K : finType).
Notation pairs := ({ffun I -> S} * {ffun I -> S})%type.

(** D3 at t = 0: r_k(z, 0) = w_k P(x_0 = z | k) / P(x_0 = z), which is P(k | x_0 = z). *)
Theorem D3_start (w : K -> R) (pi : K -> pairs -> R) z k :
  expert_posterior (conditional_path (fun=> 0)) w pi z k
  = w k * (\sum_x pi k (z, x)) / \sum_j w j * \sum_x pi j (z, x).
Proof.
rewrite /expert_posterior /gate /part_path (P4_ends _ _).1; congr (_ / _).
by apply: eq_bigr => j _; rewrite (P4_ends _ _).1.
Qed.

(** D4 for a κ at each position, in the words of the code: the field of the velocities per
    position mixes too. *)
Theorem D4_fields (c : pairs -> {ffun I -> S} -> R) w (pi : K -> pairs -> R)
    (u : pairs -> I -> S -> {ffun I -> S} -> R) x z :
  (forall h, nonneg (c h)) -> nonneg w -> (forall k, nonneg (pi k)) ->
  0 < marginal c (mixture w pi) z ->
  full_field (fun i v z => mean c (mixture w pi) z (fun h => u h i v z)) x z
  = \sum_k expert_posterior c w pi z k
    * full_field (fun i v z => mean c (pi k) z (fun h => u h i v z)) x z.
Proof.
move=> c_ge0 w_ge0 pi_ge0 p_gt0; rewrite -marginal_field D4 //.
by apply: eq_bigr => k _; rewrite marginal_field.
Qed.

(** D5. p_{1|t}^i(v | z) = Σ_k r_k(z, t) p_{1|t}^{k,i}(v | z) where p_t(z) > 0. *)
Theorem D5 (c : pairs -> {ffun I -> S} -> R) w (pi : K -> pairs -> R) z i v :
  (forall h, nonneg (c h)) -> nonneg w -> (forall k, nonneg (pi k)) ->
  0 < marginal c (mixture w pi) z ->
  token_posterior c (mixture w pi) z i v
  = \sum_k expert_posterior c w pi z k * token_posterior c (pi k) z i v.
Proof. by move=> c_ge0 w_ge0 pi_ge0 p_gt0; exact: tower. Qed.

End Tokens.

Section Prefixes.
Variables (R : realFieldType) (n : nat) (S K : finType).
Notation sequence := {ffun 'I_n -> S}.

(** 1[y^{<t} = x^{<t}], positions from 0. *)
Definition same_prefix (t : nat) (y x : sequence) : bool := 
  [forall i : 'I_n, (i < t)%N ==> (y i == x i)].
Definition prefix_indicator t (y x : sequence) : R := (same_prefix t y x)%:R.

(** q(x^{<t}). *)
Definition prefix_mass t (q : sequence -> R) : sequence -> R := marginal (prefix_indicator t) q.

(** q(v | x^{<t}), the law of the token at position t. *)
Definition next_token (t : 'I_n) (q : sequence -> R) (x : sequence) (v : S) : R :=
  mean (prefix_indicator t) q x (fun y => delta (y t) v).

(** D6. q(v | x^{<t}) = Σ_k r_k(x^{<t}) q_k(v | x^{<t}) where q(x^{<t}) > 0. *)
Theorem D6 (t : 'I_n) (w : K -> R) (q : K -> sequence -> R) x v :
  nonneg w -> (forall k, nonneg (q k)) -> 0 < prefix_mass t (mixture w q) x ->
  next_token t (mixture w q) x v
  = \sum_k gate w (fun k => prefix_mass t (q k)) x k * next_token t (q k) x v.
Proof. by move=> w_ge0 q_ge0 q_gt0; apply: tower => // y z; rewrite ler0n. Qed.

(** q(x^{<t+1}) = q(x^{<t}) q(x^t | x^{<t}). *)
Lemma prefix_massS (t : 'I_n) (q : sequence -> R) x : nonneg q ->
  prefix_mass t.+1 q x = prefix_mass t q x * next_token t q x (x t).
Proof.
move=> q_ge0; rewrite /prefix_mass meanE //; last by move=> y z; rewrite ler0n.
apply: eq_bigr => y _; rewrite /prefix_indicator /delta mulrAC -natrM mulnb; congr (_%:R * _).
congr nat_of_bool; apply/forallP/andP => [same|[/forallP same /eqP eq_t] i].
  split; last by have := same t; rewrite ltnSn eq_sym.
  by apply/forallP => i; apply/implyP => it; apply: (implyP (same i)); rewrite ltnS ltnW.
apply/implyP; rewrite ltnS leq_eqVlt => /orP[/eqP/val_inj ->|it]; first by rewrite eq_t.
exact: (implyP (same i)).
Qed.

End Prefixes.

Section BayesGate.
Variables (R : realFieldType) (K : finType).

(** r_k ∝ r_k ℓ_k for the likelihoods ℓ_k of the next token under each expert. *)
Definition bayes_gate_update (r l : K -> R) (k : K) : R := r k * l k / \sum_j r j * l j.

(** The gate after the tokens with the likelihoods ls. *)
Definition bayes_gate (w : K -> R) (ls : seq (K -> R)) : K -> R := foldl bayes_gate_update w ls.

(** Π_t Σ_k r_k ℓ_k^t with the running gate: the mixture token by token. *)
Fixpoint tokenwise (r : K -> R) (ls : seq (K -> R)) : R :=
  if ls is l :: ls' then (\sum_k r k * l k) * tokenwise (bayes_gate_update r l) ls' else 1.

(** Σ_k w_k Π_t ℓ_k^t: the mixture of sequences. *)
Definition sequence_mixture (w : K -> R) (ls : seq (K -> R)) : R :=
  \sum_k w k * \prod_(l <- ls) l k.

(** D7. Mixing token by token with the gate r_k(x^{≤t+1}) ∝ r_k(x^{≤t}) q_k(x^{t+1} | x^{≤t}) is
    the mixture of sequences Σ_k w_k q_k(x), for any experts (likelihoods need not be normalized)
    and any prior w that sums to 1; also where the mixture is 0. *)
Theorem D7 (w : K -> R) (ls : seq (K -> R)) :
  law w -> (forall n k, 0 <= nth (fun=> 0) ls n k) -> tokenwise w ls = sequence_mixture w ls.
Proof.
rewrite /sequence_mixture; elim: ls w => [|l ls IH] w [w_ge0 w1] ls_ge0 /=.
  by rewrite -[LHS]w1; apply: eq_bigr => k _; rewrite big_nil mulr1.
have l_ge0 k : 0 <= l k by exact: (ls_ge0 0%N k).
have wl_ge0 k : 0 <= w k * l k by rewrite mulr_ge0.
have -> : \sum_k w k * \prod_(l <- l :: ls) l k = \sum_k w k * l k * \prod_(l <- ls) l k.
  by apply: eq_bigr => k _; rewrite big_cons mulrA.
have [s0|s_neq0] := eqVneq (\sum_k w k * l k) 0.
  by rewrite s0 mul0r big1 // => k _; rewrite (sum_nonneg_eq0 wl_ge0 s0) mul0r.
rewrite IH; first last.
- by move=> m k; exact: (ls_ge0 m.+1 k).
- split=> [k|]; last by rewrite /bayes_gate_update -mulr_suml divff.
  by rewrite divr_ge0 // sumr_ge0.
rewrite mulr_sumr; apply: eq_bigr => k _.
by rewrite /bayes_gate_update [LHS]mulrA [X in X * _]mulrC divfK.
Qed.

(** D7: the running gate is the posterior over experts, r_k = w_k Π_t ℓ_k^t / Σ_j w_j Π_t ℓ_j^t. *)
Theorem D7_gate (w : K -> R) (ls : seq (K -> R)) k :
  nonneg w -> (forall n j, 0 <= nth (fun=> 0) ls n j) -> \sum_j w j = 1 ->
  0 < sequence_mixture w ls ->
  bayes_gate w ls k = w k * \prod_(l <- ls) l k / sequence_mixture w ls.
Proof.
rewrite /sequence_mixture; elim: ls w => [|l ls IH] w w_ge0 ls_ge0 w1 /=.
  by rewrite big_nil (eq_bigr w) ?w1 ?mulr1 ?divr1 // => j _; rewrite big_nil mulr1.
have l_ge0 j : 0 <= l j by exact: (ls_ge0 0%N j).
have wl_ge0 j : 0 <= w j * l j by rewrite mulr_ge0.
have tail_ge0 j : 0 <= \prod_(l <- ls) l j.
  rewrite (big_nth (fun=> 0)) big_seq prodr_ge0 // => m _; exact: (ls_ge0 m.+1 j).
have -> : \sum_j w j * \prod_(l <- l :: ls) l j = \sum_j w j * l j * \prod_(l <- ls) l j.
  by apply: eq_bigr => j _; rewrite big_cons mulrA.
move=> total_gt0; set s := \sum_j w j * l j.
have s_neq0 : s != 0.
  apply/eqP => s0; move: total_gt0; rewrite big1 ?ltxx // => j _.
  by rewrite (sum_nonneg_eq0 wl_ge0 s0) mul0r.
have step : \sum_j bayes_gate_update w l j * \prod_(l <- ls) l j
    = (\sum_j w j * l j * \prod_(l <- ls) l j) / s.
  by rewrite mulr_suml; apply: eq_bigr => j _; rewrite /bayes_gate_update mulrAC.
have s_gt0 : 0 < s by rewrite lt_neqAle eq_sym s_neq0 sumr_ge0.
rewrite IH; first last.
- by rewrite step divr_gt0.
- by rewrite /bayes_gate_update -mulr_suml divff.
- by move=> m j; exact: (ls_ge0 m.+1 j).
- by move=> j; rewrite divr_ge0 // ltW.
rewrite step big_cons /bayes_gate_update -/s invf_div mulrA.
rewrite [w k * l k / s * _]mulrAC -!mulrA; congr (_ * (_ * (_ * _))).
by rewrite mulrA mulVf ?mul1r.
Qed.

End BayesGate.
