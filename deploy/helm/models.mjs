// Reads rendered objects (a JSON list) from standard input and checks the kinds that Kubernetes itself does not know
// against their published models. Called by tests/deploy; argv[2] is the folder with node_modules.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const load = createRequire(`${process.argv[2]}/`);
const models = {
  "cert-manager.io/v1/Certificate": "cert-manager",
  "cert-manager.io/v1/Issuer": "cert-manager",
  "gateway.networking.k8s.io/v1alpha2/TLSRoute": "gateway-api",
  "monitoring.coreos.com/v1/ServiceMonitor": "prometheus-operator",
};
const checked = [];
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const kind = `${object.apiVersion}/${object.kind}`;
  if (!(kind in models)) continue;
  const { [object.kind]: Model } = load(`@kubernetes-models/${models[kind]}/${kind}`);
  new Model(object).validate();
  checked.push(object.kind);
}
console.log(JSON.stringify(checked));
