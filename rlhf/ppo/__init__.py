"""Step 3. The choices that descriptions of PPO leave open, each with its key; tests name them as `row N`.

 1  prompts padded left, responses right; a long prompt loses whole paragraphs     data.truncation
 2  a response begins as the template says, and ends with what ends a turn         data.template
 3  padding is never end-of-text; masks come from lengths
 4  positions count real tokens
 5  padding is replaced by a valid id before a forward pass
 6  what the supervised loss covers                                                sft.loss_on
 7  the scalar head starts from N(0, 1 / (width + 1))
 8  a score is read at the end-of-text token
 9  all pairs of a prompt in one batch element                                     reward.grouped
10  scores are shifted (and scaled) by the demonstrations', kept with the model    reward.normalize
11  the critic starts from the reward model, or from the actor, or elsewhere       ppo.critic
12  scores may be clipped                                                          ppo.reward_clip
13  no dropout in any of the four models, unless asked for                         ppo.dropout, critic_dropout
14  the sampling temperature in old, new and reference log-probabilities           rollout.temperature
15  responses of fixed length, without end-of-text                                 rollout.fixed_length
16  what a response without end-of-text costs                                      ppo.eos_penalty, eos_penalty_mode
17  the score is added at the last action, end-of-text included
18  k1 in the reward; k1 and k3 reported, per sequence and per token
19  a fixed KL coefficient, or one that steers the KL per sequence                 ppo.kl_controller
20  rewards scaled by their standard deviation, the mean kept                      ppo.whiten_rewards
21  discount and lambda                                                            ppo.gamma, gae_lambda
22  advantages whitened over the tokens of the whole rollout, all ranks            ppo.whiten_advantages
23  clipping of ratios and values, the larger loss of clipped and unclipped        ppo.clip_range, value_clip_range
24  the first mini-batch's ratios are 1, or the run stops                          ppo.ratio_tolerance
26  Adam's epsilon                                                                 ppo.eps
28  randomness by (seed, purpose, step, sample)                                    seed
29  losses and statistics over real tokens only
30  token means over the global batch of an update
31  log-ratios cut before exp, and counted                                         ppo.log_ratio_clip
32  log-probabilities in float32, chunk by chunk
33  the sampler's log-probabilities are the trainer's, or the run says so, or stops  ppo.sampler_tolerance, old_logprobs
34  a moving average of the actor, saved as its own model                          ppo.ema
35  a pre-training loss beside the policy's                                        ppo.ptx_coef
"""
