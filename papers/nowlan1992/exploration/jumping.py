"""A probe: single weights moved by Metropolis between trajectories of NUTS, on the sunspot net.

    for kind in plain mh mhg mhgc; do
        PYTHONPATH=. python papers/nowlan1992/exploration/jumping.py $kind 150 200 8 10 8 2 1 .8; done

mh: redraws, swaps and transfers, scales of units, a random walk; g: the mixture by Gibbs; c: whole
components scaled and shifted with their weights. Then: warm-up, draws, depth, rounds, components, nu,
seed, target acceptance, and the numbers of each move, "[208,208,32,104]".
"""
import sys, time, warnings, math; warnings.simplefilter('ignore')
import numpy as np, torch, numba; torch.set_num_threads(1)
from papers.nowlan1992.bayes import joints, Model
from papers.nowlan1992.forecasts import numbers
from swsmix.problems import data
from swsmix.bayes import sample, trajectory, chains as chains_module
from swsmix.bayes.agreement import Agreement, energy_fraction
from swsmix.bayes.layout import basis
jit=numba.njit(cache=True,error_model="numpy",fastmath=True)
@jit
def lp1(w,height,mean,inv):
    top=-1e300
    k=len(mean)
    for j in range(k):
        o=(w-mean[j])*inv[j]; t=height[j]-.5*o*o
        if t>top: top=t
    s=0.
    for j in range(k):
        o=(w-mean[j])*inv[j]; s+=math.exp(height[j]-.5*o*o-top)
    return top+math.log(s)
@jit
def draw1(cum,mean,inv):
    u=np.random.random(); j=0
    while j<len(cum)-1 and u>cum[j]: j+=1
    return mean[j]+np.random.standard_normal()/inv[j]
@jit
def seed_(s): np.random.seed(s)
@jit
def try_unit(h,W,c,v,X,pre,act,am,r,prec,newpre,newact,dw_lp,newv,xbar_w_old,xbar_w_new,newc,other2,dbar):
    # generic acceptance for unit h with newpre filled; returns accepted
    n=len(r); s=0.
    for i in range(n):
        newact[i]=math.tanh(newpre[i]); s+=newact[i]
    nm=s/n
    old=0.; new=0.
    for i in range(n):
        old+=r[i]*r[i]
        q=r[i]+v[h]*(act[h,i]-am[h])-newv*(newact[i]-nm)
        new+=q*q
    b0=c[h]-xbar_w_old; b1=newc-xbar_w_new
    # output bias ordinary: d - sum am v ; dbar = current ordinary output bias
    o0=dbar; o1=dbar+am[h]*v[h]-nm*newv
    la=-.5*prec*(new-old)+dw_lp-.5*(b1*b1-b0*b0+o1*o1-o0*o0)/other2
    if math.log(np.random.random())<la:
        for i in range(n):
            r[i]+=v[h]*(act[h,i]-am[h])-newv*(newact[i]-nm)
            pre[h,i]=newpre[i]; act[h,i]=newact[i]
        am[h]=nm
        return True,o1
    return False,dbar
@jit
def sweep(W,c,v,d,X,xbar,y,log_var,height,mean,inv,pi,other2,count,reps,acc):
    H,I=W.shape; n=len(y); prec=math.exp(-log_var)
    cum=np.cumsum(pi)
    pre=np.empty((H,n)); act=np.empty((H,n)); am=np.zeros(H); r=np.empty(n)
    bw=np.zeros(H) # xbar.w
    for h in range(H):
        for i in range(I): bw[h]+=xbar[i]*W[h,i]
        for t in range(n):
            s=c[h]
            for i in range(I): s+=W[h,i]*(X[t,i]-xbar[i])
            pre[h,t]=s; act[h,t]=math.tanh(s); am[h]+=act[h,t]/n
    for t in range(n):
        s=d
        for h in range(H): s+=v[h]*(act[h,t]-am[h])
        r[t]=y[t]-s
    dbar=d
    for h in range(H): dbar-=am[h]*v[h]
    newpre=np.empty(n); newact=np.empty(n)
    for rep in range(reps):
        for m in range(count[0]): # independence
            h=np.random.randint(H); i=np.random.randint(I+1)
            nw=draw1(cum,mean,inv)
            if i<I:
                dl=nw-W[h,i]
                for t in range(n): newpre[t]=pre[h,t]+dl*(X[t,i]-xbar[i])
                ok,dbar=try_unit(h,W,c,v,X,pre,act,am,r,prec,newpre,newact,0.,v[h],bw[h],bw[h]+dl*xbar[i],c[h],other2,dbar)
                if ok: W[h,i]=nw; bw[h]+=dl*xbar[i]; acc[0]+=1
            else:
                for t in range(n): newpre[t]=pre[h,t]
                ok,dbar=try_unit(h,W,c,v,X,pre,act,am,r,prec,newpre,newact,0.,nw,bw[h],bw[h],c[h],other2,dbar)
                if ok: v[h]=nw; acc[0]+=1
            acc[1]+=1
        for m in range(count[1]): # swap within unit, or transfer
            h=np.random.randint(H); i=np.random.randint(I); j=np.random.randint(I)
            if i==j: continue
            wi,wj=W[h,i],W[h,j]
            if np.random.random()<.5:
                ni,nj=wj,wi; lp=0.; kind=2
            else:
                e=np.random.standard_normal()*math.exp(np.random.uniform(-4.,0.))
                ni,nj=wi+e,wj-e; kind=4
                lp=lp1(ni,height,mean,inv)+lp1(nj,height,mean,inv)-lp1(wi,height,mean,inv)-lp1(wj,height,mean,inv)
            di,dj=ni-wi,nj-wj
            for t in range(n): newpre[t]=pre[h,t]+di*(X[t,i]-xbar[i])+dj*(X[t,j]-xbar[j])
            db=di*xbar[i]+dj*xbar[j]
            ok,dbar=try_unit(h,W,c,v,X,pre,act,am,r,prec,newpre,newact,lp,v[h],bw[h],bw[h]+db,c[h],other2,dbar)
            if ok: W[h,i]=ni; W[h,j]=nj; bw[h]+=db; acc[kind]+=1
            acc[kind+1]+=1
        for m in range(count[2]): # scale of a unit
            h=np.random.randint(H); s=np.random.standard_normal()*math.exp(np.random.uniform(-3.,0.)); f=math.exp(s)
            lp=(I+1-1)*s
            for i in range(I): lp+=lp1(W[h,i]*f,height,mean,inv)-lp1(W[h,i],height,mean,inv)
            lp+=lp1(v[h]/f,height,mean,inv)-lp1(v[h],height,mean,inv)
            for t in range(n): newpre[t]=pre[h,t]*f
            ok,dbar=try_unit(h,W,c,v,X,pre,act,am,r,prec,newpre,newact,lp,v[h]/f,bw[h],bw[h]*f,c[h]*f,other2,dbar)
            if ok:
                W[h]*=f; v[h]/=f; c[h]*=f; bw[h]*=f; acc[6]+=1
            acc[7]+=1
        for m in range(count[3]): # unit reshuffle: swap input weight i between two units
            h=np.random.randint(H); i=np.random.randint(I)
            e=np.random.standard_normal()*math.exp(np.random.uniform(-4.,0.))
            nw=W[h,i]+e; lp=lp1(nw,height,mean,inv)-lp1(W[h,i],height,mean,inv)
            for t in range(n): newpre[t]=pre[h,t]+e*(X[t,i]-xbar[i])
            ok,dbar=try_unit(h,W,c,v,X,pre,act,am,r,prec,newpre,newact,lp,v[h],bw[h],bw[h]+e*xbar[i],c[h],other2,dbar)
            if ok: W[h,i]=nw; bw[h]+=e*xbar[i]; acc[8]+=1
            acc[9]+=1
@jit
def gibbs(w,height,mean,inv,alpha,kappa,nu,s2,pi,std,reps):
    k=len(mean); n=len(w)
    p=np.empty(k)
    for rep in range(reps):
        cnt=np.zeros(k); s1=np.zeros(k); s2_=np.zeros(k)
        z=np.empty(n,np.int64)
        for i in range(n):
            top=-1e300
            for j in range(k):
                o=(w[i]-mean[j])/std[j]; p[j]=math.log(pi[j])-math.log(std[j])-.5*o*o
                if p[j]>top: top=p[j]
            t=0.
            for j in range(k): p[j]=math.exp(p[j]-top); t+=p[j]
            u=np.random.random()*t; j=0; a=p[0]
            while j<k-1 and u>a: j+=1; a+=p[j]
            z[i]=j; cnt[j]+=1; s1[j]+=w[i]; s2_[j]+=w[i]*w[i]
        tot=0.
        for j in range(k):
            pi[j]=np.random.gamma(alpha+cnt[j],1.); tot+=pi[j]
        for j in range(k):
            pi[j]/=tot
            kn=kappa+cnt[j]; m=s1[j]/kn
            ss=nu*s2+s2_[j]-kn*m*m
            var=ss/np.random.chisquare(nu+cnt[j])
            std[j]=math.sqrt(var); mean[j]=m+np.random.standard_normal()*std[j]/math.sqrt(kn)
    for j in range(k):
        inv[j]=1/std[j]; height[j]=math.log(pi[j])-math.log(std[j])-.5*math.log(2*math.pi)
@jit
def full(W,c,v,d,X,xbar,y,pre):
    H,I=W.shape; n=len(y)
    ss=0.; bsum=0.; od=d
    out=np.full(n,d)
    for h in range(H):
        b=c[h]
        for i in range(I): b-=xbar[i]*W[h,i]
        bsum+=b*b
        am=0.
        for t in range(n):
            s=b
            for i in range(I): s+=W[h,i]*X[t,i]
            pre[t]=math.tanh(s); am+=pre[t]
        am/=n
        od-=am*v[h]
        for t in range(n): out[t]+=v[h]*(pre[t]-am)
    for t in range(n): ss+=(y[t]-out[t])**2
    return ss,bsum+od*od
@jit
def comps(W,c,v,d,X,xbar,y,log_var,mean,std,pi,kappa,nu,s2,other2,reps,acc):
    H,I=W.shape; n=len(y); k=len(mean); prec=math.exp(-log_var)
    buf=np.empty(n); zW=np.empty((H,I),np.int64); zv=np.empty(H,np.int64); p=np.empty(k)
    for h in range(H):
        for i in range(I+1):
            w=W[h,i] if i<I else v[h]
            top=-1e300
            for j in range(k):
                o=(w-mean[j])/std[j]; p[j]=math.log(pi[j])-math.log(std[j])-.5*o*o
                if p[j]>top: top=p[j]
            t=0.
            for j in range(k): p[j]=math.exp(p[j]-top); t+=p[j]
            u=np.random.random()*t; j=0; a=p[0]
            while j<k-1 and u>a: j+=1; a+=p[j]
            if i<I: zW[h,i]=j
            else: zv[h]=j
    ss,bb=full(W,c,v,d,X,xbar,y,buf)
    for rep in range(reps):
        for j in range(k):
            scale=np.random.random()<.5
            if scale:
                s=np.random.standard_normal()*math.exp(np.random.uniform(-2.,.5)); f=math.exp(s); nm=mean[j]; ns=std[j]*f
            else:
                f=1.; ns=std[j]; nm=mean[j]+std[j]*np.random.standard_normal()*math.exp(np.random.uniform(-2.,1.))
            W2=W.copy(); v2=v.copy()
            for h in range(H):
                for i in range(I):
                    if zW[h,i]==j: W2[h,i]=nm+(W[h,i]-mean[j])*f
                if zv[h]==j: v2[h]=nm+(v[h]-mean[j])*f
            ss2,bb2=full(W2,c,v2,d,X,xbar,y,buf)
            la=-.5*prec*(ss2-ss)-.5*(bb2-bb)/other2
            a0=-nu*math.log(std[j])-.5*nu*s2/std[j]**2 -math.log(std[j])-.5*kappa*mean[j]**2/std[j]**2
            a1=-nu*math.log(ns)-.5*nu*s2/ns**2 -math.log(ns)-.5*kappa*nm**2/ns**2
            la+=a1-a0
            q=0 if scale else 2
            acc[q+1]+=1
            if math.log(np.random.random())<la:
                acc[q]+=1; W[:]=W2; v[:]=v2; ss=ss2; bb=bb2; mean[j]=nm; std[j]=ns
ACC2=np.zeros(4)
ACC=np.zeros(12)
if __name__=='__main__':
    kind, warm, draws, depth, reps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    K = int(sys.argv[6]) if len(sys.argv) > 6 else 8
    nuv=float(sys.argv[7]) if len(sys.argv)>7 else 2.
    seed=int(sys.argv[8]) if len(sys.argv)>8 else 1
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    model=Model(components=K,std_count=nuv)
    joint, starts = joints(model, x, y, 4)
    lay=joint.layout; ev,yy=joint._compiled
    X=np.ascontiguousarray(joint.x.numpy().astype(float)); xbar=X.mean(0); yy=np.ascontiguousarray(yy.reshape(-1).astype(float))
    sl=lay.slices; print({k:(v.start,v.stop) for k,v in sl.items()})
    (g,)=lay.groups; us,ms,xs=lay.mixture_slices[g]; V=basis(K)
    moves=np.array(eval(sys.argv[10])) if len(sys.argv)>10 else np.array([208,208,32,104])
    old=trajectory.nuts; seed_(seed)
    def check(z): 
        return joint.potential(z,centred=True)
    def mh(z):
        z=z.copy()
        W=z[sl['hidden.weight']].reshape(8,12).copy(); c=z[sl['hidden.bias']].copy(); v=z[sl['output.weight']].copy(); d=float(z[sl['output.bias']][0])
        lv=z[-1]
        e=V@z[us]; e=np.exp(e-e.max()); pi=e/e.sum(); mean=z[ms].copy(); std=np.exp(.5*z[xs]); inv=1/std
        height=np.log(pi)-np.log(std)-.5*math.log(2*math.pi)
        for _ in range(reps):
            sweep(W,c,v,d,X,xbar,yy,lv,height,mean,inv,pi,model.other_std**2,moves,1,ACC)
            if 'c' in kind:
                comps(W,c,v,d,X,xbar,yy,lv,mean,std,pi,model.mean_count,model.std_count,model.std**2,model.other_std**2,2,ACC2); inv[:]=1/std; height[:]=np.log(pi)-np.log(std)-.5*math.log(2*math.pi)
            if 'g' in kind: gibbs(np.concatenate([W.ravel(),v]),height,mean,inv,model.concentration,model.mean_count,model.std_count,model.std**2,pi,std,2)
        z[sl['hidden.weight']]=W.ravel(); z[sl['hidden.bias']]=c; z[sl['output.weight']]=v
        lp=np.log(pi); z[us]=V.T@lp; z[ms]=mean; z[xs]=2*np.log(std)
        return z
    T=[0.,0.]
    def nuts(potential, state, **k):
        a=time.perf_counter()
        dr=old(potential,state,**k)
        b=time.perf_counter()
        z=mh(dr.state.z); val,gr=potential(z)
        T[0]+=b-a; T[1]+=time.perf_counter()-b
        return dr._replace(state=trajectory.State(z,dr.state.p,val,gr))
    if kind!='plain': trajectory.nuts=nuts
    cc=time.process_time()
    post = sample(joint, chains=4, draws=draws, warmup=warm, start=starts.numpy(), jitter=0.01, seed=seed, max_depth=depth, target_accept=float(sys.argv[9]) if len(sys.argv)>9 else .8, progress=False)
    cc=time.process_time()-cc
    o = post.outputs(joint.net, joint.x)
    a = Agreement.of(o)
    print(kind, warm, draws, depth, 'reps', reps, 'K', K, 'nu', nuv, f'rhat {a.rhat:.3f} between {a.between:.3f} within {[round(v,2) for v in a.within]} ess {a.ess:.0f} div {post.divergences} energy {float(energy_fraction(post.steps["energy"])):.2f} steps {float(post.steps["steps"].double().mean()):.0f} stepsize {post.steps["step_size"][:,-1].tolist()} cpu {cc:.0f}', [round(t,1) for t in T], flush=True)
    print('comps',ACC2[::2]/np.maximum(ACC2[1::2],1)); print('acc', (ACC[0:10:2]/np.maximum(ACC[1:10:2],1)).round(3), 'll', post.steps['log_density'].mean(1).tolist())
