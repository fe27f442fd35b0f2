// Not run: nobody here has an Azure account. The properties are those that Microsoft.App has at this api-version.
// The container of deploy/Dockerfile as a pool of custom containers. docs/guides/azure.md says what is not known about it.
param name string = 'own-sessions'
param location string = resourceGroup().location
@description('Resource id of a Container Apps environment with workload profiles.')
param environmentId string
@description('For example myregistry.azurecr.io/aca-sessions:1. Use a new tag for each build: pools keep the image that they have.')
param image string
@description('For example myregistry.azurecr.io')
param registryServer string
@description('Resource id of a user-assigned identity that may pull from the registry (AcrPull).')
param pullIdentityId string
@description('Who may run code: the object id of a user, or of the identity of an app.')
param executorId string
@allowed(['User', 'ServicePrincipal', 'Group'])
param executorType string = 'ServicePrincipal'
param maxConcurrentSessions int = 20
param readySessionInstances int = 2
@minValue(300)
@maxValue(3600)
param cooldownSeconds int = 300
@allowed(['full', 'no-namespaces'])
param isolation string = 'no-namespaces'

// Azure ContainerApps Session Executor
var executorRole = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0')

resource pool 'Microsoft.App/sessionPools@2025-07-01' = {
  name: name
  location: location
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${pullIdentityId}': {} } }
  properties: {
    environmentId: environmentId
    poolManagementType: 'Dynamic'
    containerType: 'CustomContainer'
    managedIdentitySettings: [{ identity: pullIdentityId, lifecycle: 'None' }] // sessions cannot use it
    scaleConfiguration: { maxConcurrentSessions: maxConcurrentSessions, readySessionInstances: readySessionInstances }
    dynamicPoolConfiguration: {
      lifecycleConfiguration: { lifecycleType: 'Timed', cooldownPeriodInSeconds: cooldownSeconds }
    }
    customContainerTemplate: {
      registryCredentials: { server: registryServer, identity: pullIdentityId }
      ingress: { targetPort: 8080 }
      containers: [
        {
          name: 'sessions'
          image: image
          args: ['serve', '--host', '0.0.0.0', '--port', '8080', '--no-api-key', '--allowed-host', '*', '--cooldown', '3600']
          env: [{ name: 'ACASessions__Sandbox__Isolation', value: isolation }]
          resources: { cpu: json('1.0'), memory: '4Gi' }
        }
      ]
    }
    sessionNetworkConfiguration: { status: 'EgressDisabled' }
  }
}

resource executor 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: pool
  name: guid(pool.id, executorId, executorRole)
  properties: { roleDefinitionId: executorRole, principalId: executorId, principalType: executorType }
}

@description('ACASessions__SessionsHttpClient__Endpoint')
output endpoint string = pool.properties.poolManagementEndpoint
