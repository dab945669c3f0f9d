"""A probe: the posterior of the sunspot net by sequential Monte Carlo from the prior.

    PYTHONPATH=. python papers/nowlan1992/exploration/tempering.py --P 128 --runs 2 --L 32 --C 32 -v

--L is the most steps of HMC on everything, --C of HMC on the weights in units of their components.
"""
import sys, time, math
import numpy as np, torch
torch.set_num_threads(1); torch.set_default_dtype(torch.float64)
from papers.nowlan1992.bayes import joints, Model
from papers.nowlan1992.forecasts import numbers, Scale
from swsmix.problems import data
from swsmix.bayes.layout import basis
import warnings; warnings.simplefilter('ignore')

class Target:
    def __init__(s, joint):
        s.j, s.l = joint, joint.layout
        (s.term,) = joint.terms.values(); (s.g,) = joint.terms
        s.widx = torch.from_numpy(s.l.weight_index(s.g)); s.oidx = torch.from_numpy(joint.others)
        s.u, s.mu, s.xi = s.l.mixture_slices[s.g]
        h = s.term.hyper
        s.alpha = torch.tensor(s.term.alpha); s.k = len(h.std)
        s.m, s.kappa = torch.tensor(h.mean), torch.tensor(h.mean_count)
        s.half, s.half_s2 = torch.tensor(s.term.half), torch.tensor(s.term.half_s2)
        s.V = torch.tensor(basis(s.k)) if s.k > 1 else None
        s.x, s.y = joint.x.double(), joint.y.double()
        s.nc, s.ns = joint.noise_count, joint.noise_scale
        s.freemean = len(s.term.free_mean) > 0
    def prior_draw(s, P, gen):
        d = s.l.size; z = torch.zeros(P, d)
        half = s.half
        chi = torch._standard_gamma(half.expand(P, -1).contiguous(), generator=gen)
        var = s.half_s2 / chi
        if s.k > 1:
            share = torch._sample_dirichlet(s.alpha.expand(P, -1).contiguous(), generator=gen).clamp_min(1e-300)
        else: share = torch.ones(P, 1)
        mean = s.m + (var / s.kappa.clamp_min(1e-300)).sqrt() * torch.randn(P, s.k, generator=gen) if s.freemean else torch.zeros(P, s.k)
        n = len(s.widx)
        zz = torch.multinomial(share, n, replacement=True, generator=gen)
        w = mean.gather(1, zz) + var.gather(1, zz).sqrt() * torch.randn(P, n, generator=gen)
        z[:, s.widx] = w
        z[:, s.oidx] = s.j.other_std * torch.randn(P, len(s.oidx), generator=gen)
        s.set_mix(z, share, mean, var)
        if s.l.learns_noise:
            c = torch._standard_gamma(torch.full((P,), s.nc / 2), generator=gen)
            z[:, -1] = (s.nc / 2 * s.ns**2 / c).log()
        return z
    def set_mix(s, z, share, mean, var):
        if s.k > 1: z[:, s.u] = share.clamp_min(1e-300).log() @ s.V
        if s.freemean: z[:, s.mu] = mean
        z[:, s.xi] = var.log()
    def mix(s, z):
        logpi = (z[:, s.u] @ s.V.T).log_softmax(-1) if s.k > 1 else z.new_zeros(len(z), 1)
        mean = z[:, s.mu] if s.freemean else z.new_zeros(len(z), s.k)
        return logpi, mean, z[:, s.xi]
    def gammas(s, z):
        logpi, mean, xi = s.mix(z); w = z[:, s.widx]
        off = (w[:, None] - mean[..., None]) * (-0.5 * xi).exp()[..., None]
        return logpi[..., None] - 0.5 * xi[..., None] - 0.5 * off * off - 0.5 * math.log(2 * math.pi)
    def log_prior(s, z):
        logpi, mean, xi = s.mix(z)
        v = s.gammas(z).logsumexp(1).sum(-1)
        v = v + ((s.alpha) * logpi).sum(-1)
        v = v - (s.half * xi + s.half_s2 * (-xi).exp()).sum(-1)
        if s.freemean:
            v = v - 0.5 * (s.kappa * (mean - s.m) ** 2 * (-xi).exp() + xi - s.kappa.log() + math.log(2*math.pi)).sum(-1)
        o = z[:, s.oidx] / s.j.other_std
        v = v - 0.5 * (o * o).sum(-1)
        if s.l.learns_noise:
            e = z[:, -1]; v = v - (0.5 * s.nc * e + 0.5 * s.nc * s.ns**2 * (-e).exp())
        return v
    def out(s, z):
        p = s.l.network(z)
        h = torch.tanh(torch.matmul(s.x, p['hidden.weight'].transpose(1, 2)) + p['hidden.bias'][:, None])
        return torch.matmul(h, p['output.weight'].transpose(1, 2))[..., 0] + p['output.bias']
    def log_lik(s, z):
        r = s.out(z) - s.y; e = z[:, -1]
        return -0.5 * ((r * r).sum(-1) * (-e).exp() + len(s.y) * (e + math.log(2 * math.pi)))
    def gibbs(s, z, t, gen):
        """mixture | w, noise | w exactly"""
        P = len(z)
        if s.k > 1:
            g = s.gammas(z).transpose(1, 2).softmax(-1)
            a = torch.multinomial(g.reshape(-1, s.k), 1, generator=gen).view(P, -1)
        else: a = torch.zeros(P, len(s.widx), dtype=torch.long)
        w = z[:, s.widx]
        one = torch.zeros(P, s.k, w.shape[1]).scatter_(1, a[:, None], 1.0)
        n = one.sum(-1); sw = (one * w[:, None]).sum(-1); 
        if s.freemean:
            kn = s.kappa + n; mn = (s.kappa * s.m + sw) / kn
            ss = (one * (w[:, None] - mn[..., None]) ** 2).sum(-1) + s.kappa * (mn - s.m) ** 2
        else:
            ss = (one * w[:, None] ** 2).sum(-1)
        var = (s.half_s2 + 0.5 * ss) / torch._standard_gamma(s.half + 0.5 * n, generator=gen)
        mean = mn + (var / kn).sqrt() * torch.randn(P, s.k, generator=gen) if s.freemean else torch.zeros(P, s.k)
        share = torch._sample_dirichlet(s.alpha + n, generator=gen) if s.k > 1 else torch.ones(P, 1)
        z = z.clone(); s.set_mix(z, share, mean, var)
        if s.l.learns_noise:
            r = s.out(z) - s.y
            nn_ = s.nc + t * len(s.y)
            z[:, -1] = ((0.5 * s.nc * s.ns**2 + 0.5 * t * (r * r).sum(-1)) / torch._standard_gamma(torch.full((P,), 0.5 * nn_), generator=gen)).log()
        return z
    def centre(s, z, back=False):
        sl = s.l.slices
        p = s.l.network(z)
        sign = -1.0 if back else 1.0
        shift = torch.matmul(p['hidden.weight'], s.x.mean(0))
        hb = p['hidden.bias'] + sign * shift
        real = hb if back else p['hidden.bias']
        h = torch.tanh(torch.matmul(s.x, p['hidden.weight'].transpose(1, 2)) + real[:, None])
        ob = p['output.bias'] + sign * torch.matmul(h.mean(1), p['output.weight'][:, 0, :, None])[:, 0]
        z = z.clone(); z[:, sl['hidden.bias']] = hb; z[:, sl['output.bias']] = ob
        return z
    def grad(s, zc, t, cond=None):
        zc = zc.detach().requires_grad_()
        z = s.centre(zc, back=True)
        if cond is None: lp = s.log_prior(z)
        else:
            mean, isd = cond
            w = (z[:, s.widx] - mean) * isd; o = z[:, s.oidx] / s.j.other_std
            lp = -0.5 * (w * w).sum(1) - 0.5 * (o * o).sum(1)
        ll = s.log_lik(z); z = zc
        v = lp + t * ll
        v = torch.where(v.isfinite(), v, -torch.inf)
        (g,) = torch.autograd.grad(torch.where(v.isfinite(), v, 0.).sum(), z)
        return v.detach(), torch.nan_to_num(g, 0, 0, 0), ll.detach()

def cond_hmc(tg, z, t, eps, L, gen):
    P, d = z.shape
    g = tg.gammas(z).transpose(1, 2).softmax(-1)
    a = torch.multinomial(g.reshape(-1, tg.k), 1, generator=gen).view(P, -1)
    _, mean, xi = tg.mix(z)
    cond = mean.gather(1, a), (-0.5 * xi).exp().gather(1, a)
    zc = tg.centre(z)
    v0, g, ll0 = tg.grad(zc, t, cond)
    prec = torch.zeros(P, d); prec[:, tg.widx] = cond[1] ** 2; prec[:, tg.oidx] = 1 / tg.j.other_std**2
    # lik precision per coordinate from the population: Fisher identity, robustly
    c = (g**2).mean(0) - prec.clamp_max(1e4).mean(0)
    c = ((g**2).median(0).values / 0.455 - prec.median(0).values).clamp_min(0)
    scale = (prec + c).rsqrt()
    move = torch.zeros(d); move[tg.widx] = 1; move[tg.oidx] = 1
    scale = torch.where(move > 0, scale, 0.0)
    e = eps * torch.exp(torch.empty(P, 1).uniform_(-1.0, 0.35, generator=gen))
    p0 = torch.randn(P, d, generator=gen) * (move > 0)
    q, p = zc, p0 + 0.5 * e * scale * g
    for i in range(L):
        q = q + e * scale * p
        v, g, ll = tg.grad(q, t, cond)
        p = p + (e if i < L - 1 else 0.5 * e) * scale * g
    la = v - v0 - 0.5 * (p * p).sum(1) + 0.5 * (p0 * p0).sum(1)
    la = torch.nan_to_num(la, -1e9, -1e9, -1e9)
    acc = torch.rand(P, generator=gen).log() < la
    z = torch.where(acc[:, None], tg.centre(q, back=True), z)
    return z, torch.where(acc, ll, ll0), la.clamp_max(0).exp().mean().item()

def hmc(tg, z, t, eps, L, scale, gen, centre=True):
    P, d = z.shape
    z0 = z; z = tg.centre(z)
    q = z.quantile(torch.tensor([.25, .75]), dim=0)
    scale = ((q[1] - q[0]) / 1.35).clamp_min(1e-3)
    e = eps * torch.exp(torch.empty(P, 1).uniform_(-1.0, 0.35, generator=gen))
    p0 = torch.randn(P, d, generator=gen)
    v0, g, ll0 = tg.grad(z, t)
    q, p = z, p0 + 0.5 * e * scale * g
    for i in range(L):
        q = q + e * scale * p
        v, g, ll = tg.grad(q, t)
        p = p + (e if i < L - 1 else 0.5 * e) * scale * g
    la = v - v0 - 0.5 * (p * p).sum(1) + 0.5 * (p0 * p0).sum(1)
    la = torch.nan_to_num(la, -1e9, -1e9, -1e9)
    acc = torch.rand(P, generator=gen).log() < la
    z = torch.where(acc[:, None], tg.centre(q, back=True), z0)
    return z, torch.where(acc, ll, ll0), la.clamp_max(0).exp().mean().item()

def smc(tg, P, seed, L=10, moves=3, rho=0.9, C=0, verbose=False, final=0):
    gen = torch.Generator().manual_seed(seed)
    z = tg.prior_draw(P, gen); ll = tg.log_lik(z)
    eps2 = 0.2; t, logz, eps, stages, evals = 0.0, 0.0, 0.1, 0, 0
    roots = torch.arange(P)
    while t < 1:
        l = torch.where(ll.isfinite(), ll, -torch.inf)
        def ess(dt):
            w = (dt * (l - l.max())).softmax(0); return float(1 / (w * w).sum()) / P
        lo, hi = 0.0, 1 - t
        if ess(hi) < rho:
            for _ in range(60):
                mid = 0.5 * (lo + hi)
                if lo == 0 and hi > 1e-12 and ess(hi * 1e-3) < rho: hi *= 1e-3; continue
                lo, hi = (mid, hi) if ess(mid) > rho else (lo, mid)
            dt = lo
        else: dt = hi
        lw = dt * l
        logz += float(lw.logsumexp(0) - math.log(P)); t = min(t + dt, 1.0) if dt < 1 - t else 1.0
        w = lw.softmax(0)
        u = (torch.arange(P) + torch.rand(1, generator=gen)) / P
        idx = torch.searchsorted(w.cumsum(0), u).clamp_max(P - 1)
        z, ll, roots = z[idx], ll[idx], roots[idx]
        accs, accs2 = [], []
        for m in range(moves if t < 1 else moves + final):
            z = tg.gibbs(z, t, gen)
            if L:
                n = int(min(max(0.7 / eps, 4), L))
                z, ll, a = hmc(tg, z, t, eps, n, None, gen); evals += n + 1
                eps *= math.exp(0.7 * (a - 0.7)); accs.append(a)
            if C:
                n = int(min(max(1.0 / eps2, 4), C))
                z, ll, a = cond_hmc(tg, z, t, eps2, n, gen); evals += n + 1
                eps2 *= math.exp(0.7 * (a - 0.7)); accs2.append(a)
        stages += 1
        if verbose and stages % 10 == 0:
            print(f'{stages} t {t:.3g} logz {logz:.1f} eps {eps:.3g} {eps2:.3g} acc {np.mean(accs):.2f} {np.mean(accs2):.2f} ll {float(ll.mean()):.1f} roots {len(roots.unique())}', flush=True)
    return z, logz, stages, evals, len(roots.unique())

if __name__ == '__main__':
    import argparse
    a = argparse.ArgumentParser(); a.add_argument('--P', type=int, default=256); a.add_argument('--K', type=int, default=8)
    a.add_argument('--L', type=int, default=10); a.add_argument('--moves', type=int, default=3); a.add_argument('--rho', type=float, default=.9)
    a.add_argument('--C', type=int, default=0); a.add_argument('--runs', type=int, default=2); a.add_argument('--nu', type=float, default=2.0); a.add_argument('--final', type=int, default=0); a.add_argument('-v', action='store_true')
    a.add_argument('--seed', type=int, default=0)
    A = a.parse_args()
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    joint, starts = joints(Model(components=A.K, std_count=A.nu), x, y, 1)
    tg = Target(joint)
    # check gradient consistency with joint.log_joint up to a constant
    z = starts.clone()[:1].repeat(2, 1); z[1] += 0.05 * torch.randn(z.shape[1])
    v, g, ll = tg.grad(tg.centre(z), 1.0)
    ref = [joint.log_joint(z[i].numpy()) for i in range(2)]
    print('check', float(v[0] - v[1]) - (ref[0][0] - ref[1][0]), float((g[1] - torch.tensor(ref[1][1])).abs().max()))
    zs, outs = [], []
    for r in range(A.runs):
        c = time.process_time()
        z, lz, st, ev, ro = smc(tg, A.P, A.seed + r, A.L, A.moves, A.rho, A.C, A.v, A.final)
        zs.append(z); outs.append(tg.out(z).detach())
        ll = tg.log_lik(z); e = z[:, -1]
        print(f'run {r}: logZ {lz:.2f} stages {st} evals {ev} roots {ro} cpu {time.process_time()-c:.0f}s ll {float(ll.mean()):.1f}±{float(ll.std()):.1f} sigma {float((.5*e).exp().mean()*191):.2f} wide {float((z[:, tg.widx].abs()>.5).sum(1).double().mean()):.1f}', flush=True)
    from swsmix.bayes.agreement import Agreement
    o = torch.stack(outs); g = torch.Generator().manual_seed(0)
    o = torch.stack([c[torch.randperm(len(c), generator=g)] for c in o])
    ag = Agreement.of(o)
    print('rhat', ag.rhat, 'between', ag.between, 'ess', ag.ess)
