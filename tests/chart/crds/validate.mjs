// Reads a list of objects as JSON from stdin and prints what is wrong with each.
// An object of another API group is an error: the caller picks those that are known here.
import { text } from 'node:stream/consumers'
import * as gateway from '@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1'
import * as monitoring from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1'

const groups = { 'gateway.networking.k8s.io/v1': gateway, 'monitoring.coreos.com/v1': monitoring }
const objects = JSON.parse(await text(process.stdin))
let wrong = 0
for (const object of objects) {
  try {
    new groups[object.apiVersion][object.kind](object).validate()
  } catch (error) {
    wrong += 1
    console.log(`${object.kind} ${object.metadata.name}: ${error.message}`)
  }
}
console.log(`${objects.length} objects, ${wrong} wrong`)
process.exit(wrong > 0 ? 1 : 0)
