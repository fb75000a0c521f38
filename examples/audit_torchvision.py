"""Audit a network of torchvision: `python examples/audit_torchvision.py resnet50 imagenet/ 500 [resnet50.pth]`.

The folder holds test/class/image or val/class/image, one class a folder, in the order of the network's outputs (for
ImageNet's networks that of the WordNet ids); of its images 500 are drawn. Without a file of weights torchvision's own
are downloaded once.
"""

import sys

import robustcv as rc

if __name__ == "__main__":
    name, images, n, weights = [*sys.argv[1:], None][:4]
    run = rc.audit(
        f"torchvision:{name}", images, weights=weights, n=int(n), resize=224, eps=["2/255", "4/255"], effort="quick",
        explain=["grad_cam"], cases=8, out=f"reports/{name}",
    )  # fmt: skip
    clean, robust = run.metric("clean_accuracy"), run.metric("robust_accuracy", eps=4 / 255, attack=None)
    print(f"{clean.count} of {clean.n} right; {robust.count} still right under attack at L-inf 4/255")
    for check in run.record.checks:
        if check.status == "raised":
            print(f"raised: {check.check}: {check.figure}")
    print(run.page)
