"""A probe: random step lengths and a dense metric.

    for kind in plain jit0.3 jit0.1 dense; do
        PYTHONPATH=. python papers/nowlan1992/exploration/steps.py $kind 150 200 8; done
"""
import sys, time, warnings; warnings.simplefilter('ignore')
import numpy as np, torch; torch.set_num_threads(1)
from papers.nowlan1992.bayes import joints, Model
from papers.nowlan1992.forecasts import numbers
from swsmix.problems import data
from swsmix.bayes import sample, trajectory
from swsmix.bayes.agreement import Agreement, energy_fraction
kind, warm, draws, depth = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
K = int(sys.argv[5]) if len(sys.argv) > 5 else 8
x, y = numbers(*data.SUNSPOT_SPLITS["train"])
joint, starts = joints(Model(components=K), x, y, 4)
old = trajectory.nuts
if kind.startswith('jit'):
    low = float(kind[3:])
    def nuts(potential, state, *, step, metric, rng, max_depth):
        return old(potential, state, step=step * np.exp(rng.uniform(np.log(low), 0.2)), metric=metric, rng=rng, max_depth=max_depth)
    trajectory.nuts = nuts
c = time.process_time()
post = sample(joint, chains=4, draws=draws, warmup=warm, start=starts.numpy(), jitter=0.01, seed=1, max_depth=depth, metric='dense' if kind == 'dense' else 'diagonal', progress=False)
o = post.outputs(joint.net, joint.x)
a = Agreement.of(o)
print(kind, warm, draws, depth, 'K', K, f'rhat {a.rhat:.3f} between {a.between:.3f} within {[round(v,2) for v in a.within]} ess {a.ess:.0f} div {post.divergences} energy {float(energy_fraction(post.steps["energy"])):.2f} steps {float(post.steps["steps"].double().mean()):.0f} stepsize {post.steps["step_size"][:,-1].tolist()} cpu {time.process_time()-c:.0f}', flush=True)
