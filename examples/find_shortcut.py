"""Find a shortcut that a model learnt: a white tag in a corner that gave the class away in training.

In the training images of `shapes:32,shortcut` the tag stands in the class's own corner, in the test images anywhere. A
model that looks at the tag is worse on test images, and its maps say where it looked: masks tell the deciding shape.
"""

import robustcv as rc

METHOD = "integrated_gradients"


def audited(data: str, folder: str) -> rc.Run:
    """Train on one set, and explain what the model sees in 60 test images that carry a tag anywhere."""
    made = rc.train(data, epochs=3, out=f"{folder}/model")
    clean = made.metric("clean_accuracy")
    print(f"{data}: {clean.count} of {clean.n} test images right")
    return rc.explain(f"{folder}/model", "shapes:32,shortcut", n=60, method=METHOD,
                      measures=["relevance_mass", "pointing"], out=f"{folder}/explain")  # fmt: skip


if __name__ == "__main__":
    runs = {name: audited(data, f"reports/shortcut/{name}")
            for name, data in (("honest", "shapes:32"), ("misled", "shapes:32,shortcut"))}  # fmt: skip
    for name, run in runs.items():
        for row in run.measures:
            if row.method == METHOD:
                print(f"{name}: {row.measure} {row.mean:.2f}")
    print(runs["misled"].page)
